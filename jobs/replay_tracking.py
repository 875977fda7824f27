"""`flashray replay`, for `ray job submit -- python jobs/replay_tracking.py`."""

import sys

from flashray.cli import command

command(["replay", *sys.argv[1:]])
