"""What is fine-tuned: models, losses, records, privacy units, and the readers that bring them in."""
