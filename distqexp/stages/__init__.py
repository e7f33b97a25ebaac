"""The stages, one file each: plan, sketch, pool, release, export. They put the parts together and hold no mathematics."""
