"""`flashray restore`, for `ray job submit -- python jobs/reconstruct.py`."""

import sys

from flashray.cli import main

sys.exit(main(["restore", *sys.argv[1:]]))
