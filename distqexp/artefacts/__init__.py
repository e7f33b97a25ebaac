"""What the files between the stages hold: plan, round state, sums, release. Nothing here needs torch."""
