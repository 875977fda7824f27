"""`flashray train severity`, for `ray job submit -- python jobs/train_severity.py`."""

import sys

from flashray.cli import command

command(["train", "severity", *sys.argv[1:]])
