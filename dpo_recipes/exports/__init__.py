"""What leaves a run for use elsewhere."""
