"""A step of TRL's own trainer and a step of ours, side by side."""
