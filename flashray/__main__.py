"""`python -m flashray` is the command `flashray`."""

import sys

from flashray.cli import main

if __name__ == "__main__":
    sys.exit(main())
