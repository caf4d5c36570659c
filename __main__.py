"""Entry point of the command line, for `python -m equiscreen` and the console script."""

from .cli.terminal.interruption import interruptible


def main() -> None:
    """Run the command line."""
    with interruptible():  # also during the next import, which takes a second
        from .cli.app import main as run  # noqa: PLC0415 - see above

        run()


if __name__ == "__main__":
    main()
