"""`flashray train prior`, for `ray job submit -- python jobs/train_prior.py`."""

import sys

from flashray.cli import command

command(["train", "prior", *sys.argv[1:]])
