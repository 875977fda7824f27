"""`flashray register`, for `ray job submit -- python jobs/register.py`."""

import sys

from flashray.cli import command

command(["register", *sys.argv[1:]])
