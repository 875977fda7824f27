"""`flashray verify`, for `ray job submit -- python jobs/verify.py`."""

import sys

from flashray.cli import main

sys.exit(main(["verify", *sys.argv[1:]]))
