"""What a run will need, known before it starts."""
