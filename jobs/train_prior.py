"""`flashray train prior`, for `ray job submit -- python jobs/train_prior.py`."""

import sys

from flashray.cli import main

sys.exit(main(["train", "prior", *sys.argv[1:]]))
