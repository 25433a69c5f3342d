"""What a run leaves on disk: its folder, files written whole or not at all, where it ran, and the model card."""
