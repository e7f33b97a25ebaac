"""What parties that trust each other only in part need: identities, signed messages, masks, logs."""
