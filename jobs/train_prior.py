"""Train a latent diffusion prior on photos: python jobs/train_prior.py --photos … --val_photos … --output …"""

from __future__ import annotations

import sys

from flashray.cli import run
from flashray.training.train_prior import TrainPriorConfig, train_prior

if __name__ == "__main__":
    sys.exit(run(TrainPriorConfig, train_prior))
