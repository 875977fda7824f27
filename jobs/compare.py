"""`flashray compare`, for `ray job submit -- python jobs/compare.py`."""

import sys

from flashray.cli import command

command(["compare", *sys.argv[1:]])
