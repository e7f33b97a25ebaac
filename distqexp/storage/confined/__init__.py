"""Files that came from elsewhere are read in a process of its own, with limits: the parent, the child, and what the child does."""
