"""What the benchmarks share: models, ways to take a pass, training, runs that are remembered, searches, plots."""
