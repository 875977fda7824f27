"""`flashray register`, for `ray job submit -- python jobs/register.py`."""

import sys

from flashray.cli import main

sys.exit(main(["register", *sys.argv[1:]]))
