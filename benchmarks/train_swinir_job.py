"""Train SwinIR, a baseline, on clean photos: python jobs/train_swinir.py --photos … --val_photos … --output …"""

from __future__ import annotations

import sys

from benchmarks.train_swinir import TrainSwinIRConfig, train_swinir
from flashray.cli import run

if __name__ == "__main__":
    sys.exit(run(TrainSwinIRConfig, train_swinir))
