"""`flashray verify`, for `ray job submit -- python jobs/verify.py`."""

import sys

from flashray.cli import command

command(["verify", *sys.argv[1:]])
