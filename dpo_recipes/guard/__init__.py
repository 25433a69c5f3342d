"""Rules that stop a run which does not train, and the callback that asks them."""
