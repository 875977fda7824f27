"""`python -m flashray` is the command `flashray`."""

from flashray.cli import command

if __name__ == "__main__":
    command()
