"""`flashray compare`, for `ray job submit -- python jobs/compare.py`."""

import sys

from flashray.cli import main

sys.exit(main(["compare", *sys.argv[1:]]))
