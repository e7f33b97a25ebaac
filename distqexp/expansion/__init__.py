"""The public state at which a round expands: subspace, precision and clip, made from public records by all ranks."""
