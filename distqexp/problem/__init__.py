"""What is fine-tuned: models, losses, records and their privacy units, and the readers that bring records in."""
