"""Public geometry: the subspaces (P) that are searched and the precisions (A) that shape the search."""
