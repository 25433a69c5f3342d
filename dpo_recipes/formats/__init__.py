"""Forms that preference rows come in: a reader for each, and the choice of the one that fits.

The standard library only, so that a recipe can check the form it names.
"""
