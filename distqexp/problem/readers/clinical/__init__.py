"""Clinical databases as tables of one row an ICU stay: MIMIC-IV's own folder, or a folder in the Medical Event Data Standard."""
