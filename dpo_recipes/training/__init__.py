"""A recipe on this machine: its places, checked pairs and trainer."""
