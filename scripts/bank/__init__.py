"""The bank of tasks that need no download, each with nothing set but data, model and budget."""
