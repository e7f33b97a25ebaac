"""Public: where a round's quadratic is expanded. Subspace, precision and clip from public records, over all ranks."""
