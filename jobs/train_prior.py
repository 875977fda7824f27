"""Train a latent diffusion prior on photos: python jobs/train_prior.py --photos … --val_photos … --output …"""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

from flashray.errors import FlashrayError
from flashray.training.prior import TrainPriorConfig, train_prior


def main() -> int:
    try:
        train_prior(auto_cli(TrainPriorConfig, as_positional=False))
    except FlashrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
