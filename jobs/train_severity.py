"""Train a severity encoder on clean photos: python jobs/train_severity.py --photos … --val_photos … --output …"""

from __future__ import annotations

import sys

from flashray.cli import run
from flashray.training.train_severity import TrainSeverityConfig, train_severity

if __name__ == "__main__":
    sys.exit(run(TrainSeverityConfig, train_severity))
