"""Train SwinIR, a baseline, on clean photos: python jobs/train_swinir.py --photos … --val_photos … --output …"""

from __future__ import annotations

import sys

from flashray.cli import run
from flashray.training.swinir_job import TrainSwinIRConfig, train_swinir

if __name__ == "__main__":
    sys.exit(run(TrainSwinIRConfig, train_swinir))
