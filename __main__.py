"""Entry point of the command line, for `python -m equiscreen` and the console script."""

from .cli.app import main

if __name__ == "__main__":
    main()
