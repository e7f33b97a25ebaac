"""The public geometry of a run: the subspaces (P) that are searched and the precisions (A) that shape the search."""
