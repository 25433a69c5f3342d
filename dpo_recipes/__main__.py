"""`dpo-recipes`, and `python -m dpo_recipes`. Importing the command line takes a moment, in which Ctrl-C may come."""

import sys


def main() -> None:
    try:
        from .cli import main as command_line
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()
