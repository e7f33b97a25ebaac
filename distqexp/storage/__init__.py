"""Files: atomic writes, canonical JSON, checked HDF5."""
