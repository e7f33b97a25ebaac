"""Studies over files: what each party of a consortium does in a visit, with its own folder and the folder that they exchange."""
