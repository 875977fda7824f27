"""`flashray restore`, for `ray job submit -- python jobs/reconstruct.py`."""

import sys

from flashray.cli import command

command(["restore", *sys.argv[1:]])
