"""Reads the prompt that both sides of a pair share once, and pads nothing."""
