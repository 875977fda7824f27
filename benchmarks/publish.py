"""Put experiments' reports into docs/results: python -m benchmarks.publish RUN …"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import run_command
from benchmarks.pages.results_page import publish


@dataclass(frozen=True)
class PublishConfig:
    """Which experiments to publish, and where.

    Args:
        outputs: what `python -m benchmarks` wrote, folders or s3:// prefixes.
        folder: of the pages.
        photos: false leaves out the figures that show photos, where those may not be given away.
    """

    outputs: list[str]
    folder: str = "docs/results"
    photos: bool = True


def publish_outputs(config: PublishConfig) -> None:
    print("\n".join(str(page) for page in publish(config.outputs, Path(config.folder), config.photos)))


if __name__ == "__main__":
    sys.exit(run_command(PublishConfig, publish_outputs, "benchmarks.publish", rest="outputs"))
