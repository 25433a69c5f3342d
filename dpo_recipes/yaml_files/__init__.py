"""YAML files of other programs, read as recipes."""
