"""Train a severity encoder on clean photos: python jobs/train_severity.py --photos … --val_photos … --output …"""

from __future__ import annotations

import sys

from jsonargparse import auto_cli

from flashray.errors import FlashrayError
from flashray.training.severity_job import TrainSeverityConfig, train_severity


def main() -> int:
    try:
        train_severity(auto_cli(TrainSeverityConfig, as_positional=False))
    except FlashrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
