"""Other systems that carry distqexp's stages between machines."""
