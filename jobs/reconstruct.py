"""Restore an archive: python jobs/reconstruct.py --config flashray/recipes/NAME.yaml --archive URI --output URI."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from flashray.cli import exit_code
from flashray.pipeline.run import reconstruct
from flashray.pipeline.run_config import parse_args


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 1 failed images remain or the run stopped, 2 bad arguments or configuration."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    config = parse_args(argv)
    return exit_code(lambda: reconstruct(config))


if __name__ == "__main__":
    sys.exit(main())
