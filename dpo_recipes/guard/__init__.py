"""What stops a run that would fail in silence: rules in `rules` and `start`, and the callback that asks them."""
