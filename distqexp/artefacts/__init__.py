"""What the files between the stages hold: the plan, the round's state, the sums and the release. Nothing here needs torch."""
