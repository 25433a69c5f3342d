"""`python -m dpo_recipes` is `dpo-recipes`."""

from .cli import main

main()
