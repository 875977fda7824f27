"""Put experiments' reports into BENCHMARKS.md: python jobs/publish.py --outputs '[RUN, …]'."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.publish import publish
from flashray.cli import run


@dataclass(frozen=True)
class PublishConfig:
    """What goes where.

    Attributes:
        outputs: what jobs/benchmark.py wrote, folders or s3:// prefixes.
        page: the Markdown file; the words outside of its markers stay.
        assets: folder for its figures and CSV files.
        photos: false leaves out the figures that show photos, where those may not be given away.
    """

    outputs: list[str]
    page: str = "BENCHMARKS.md"
    assets: str = "docs/benchmarks"
    photos: bool = True


def main(config: PublishConfig) -> None:
    names = publish(config.outputs, Path(config.page), Path(config.assets), config.photos)
    print(f"{config.page}: {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(run(PublishConfig, main))
