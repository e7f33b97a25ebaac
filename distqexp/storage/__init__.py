"""Files: atomic writes, canonical JSON, and HDF5 files whose content is checked."""
