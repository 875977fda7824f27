"""`flashray replay`, for `ray job submit -- python jobs/replay_tracking.py`."""

import sys

from flashray.cli import main

sys.exit(main(["replay", *sys.argv[1:]]))
