"""What a run tells people: progress while it runs, a certificate at its end."""
