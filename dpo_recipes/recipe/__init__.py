"""The recipe as a value: its fields and their limits, files, overrides, and its one translation to DPOConfig.

The standard library only, so that listing, showing and refusing a recipe is quick.
"""
