"""The stages, one file each, with no mathematics in them: plan, sketch, pool, release, export."""
