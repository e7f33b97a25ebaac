"""Reading files from elsewhere in a process of their own, with limits: the parent, the child, and what the child does."""
