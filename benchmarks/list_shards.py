"""What listing an archive in shards costs the driver: `python -m benchmarks.list_shards --shards 10000 --images 1000`.

The shards' headers are not read: their indexes are made up, and everything after that is what a run does. A tar of
small images is indexed besides, to say what reading headers costs.
"""

from __future__ import annotations

import io
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.command import run_command
from flashray.pipeline import archive as archives
from flashray.pipeline.archive import listing_hash, read_archive, write_index
from flashray.pipeline.run_config import IoConfig, RunConfig
from flashray.pipeline.run_tables import parquet
from flashray.recipe import load_recipe
from flashray.report.markdown import to_markdown
from flashray.shards.shard_index import index_shards, joined

T = TypeVar("T")
SIZE = 100_000  # bytes of an image
HEADERS = 20_000  # of the tar whose headers are read


@dataclass(frozen=True)
class ListShardsConfig:
    """How large an archive.

    Args:
        shards: number of tars.
        images: of each.
    """

    shards: int = 10_000
    images: int = 1000


def index_of_tar(number: int, images: int) -> pa.Table:
    """The index of a made-up tar."""
    place = np.arange(images, dtype=np.int64)
    numbers = pc.utf8_lpad(pa.array(number * images + place).cast(pa.string()), 9, "0")
    same = pa.array(np.full(images, SIZE))
    offset = pa.array(512 + place * (512 + SIZE // 512 * 512 + 512))
    keys = pc.binary_join_element_wise(numbers, ".jpg", "")
    columns = {"key": keys, "offset": offset, "length": same, "size": same}
    return pa.table(columns | {"refused": pa.nulls(images, pa.string())})


class Steps:
    """A table of what was done, how long it took, and the process's peak of memory so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def timed(self, what: str, work: Callable[..., T], *arguments: Any) -> T:
        began, busy = time.perf_counter(), time.process_time()
        result = work(*arguments)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        row = {"step": what, "seconds": f"{seconds:.1f}", "CPU seconds": f"{busy:.1f}", "peak GB": f"{peak / 1e9:.2f}"}
        self.rows.append(row)
        return result


def first_start(steps: Steps, run: RunConfig, shards: list[tuple[str, int]], images: int) -> None:
    """All that follows the reading of the headers; leaves the kept index."""
    tables = [index_of_tar(number, images) for number in range(len(shards))]
    made = steps.timed("first start: join the indexes, look for doubled keys", joined, shards, tables)
    with mock.patch.object(archives, "index_shards", return_value=made):  # what it reads from the shards
        found = steps.timed("first start: the listing", read_archive, run)
    steps.timed("first start: keep the index", write_index, run.io.output, found.index)
    steps.timed("first start: keep the listing", parquet, found.images)


def restart(steps: Steps, run: RunConfig) -> int:
    """What every later start does; the number of images."""
    found = steps.timed("restart: the kept index and the listing", read_archive, run)
    assert found.index is None
    steps.timed("each start: hash of the listing", listing_hash, found.images)
    return len(found.images)


def headers_a_cpu_second(folder: str) -> float:
    """How many members' headers of a local tar are read."""
    tar = Path(folder, "small.tar")
    with tarfile.open(tar, "w") as target:
        for number in range(HEADERS):
            member = tarfile.TarInfo(f"{number:09d}.jpg")
            member.size = 3000
            target.addfile(member, io.BytesIO(bytes(3000)))
    began = time.process_time()
    index_shards([(str(tar), tar.stat().st_size)], lambda _: True)
    return HEADERS / (time.process_time() - began)


def list_shards(config: ListShardsConfig) -> None:
    """Print the table."""
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        archive, output = Path(folder, "archive"), Path(folder, "out")
        archive.mkdir()
        shards = [(str(archive / f"{number:05d}.tar"), 1) for number in range(config.shards)]
        for uri, _ in shards:
            Path(uri).write_bytes(b"?")
        run = RunConfig(IoConfig(str(archive), str(output)), load_recipe("photo"))
        steps.timed("imports alone", len, shards)
        first_start(steps, run, shards, config.images)
        size = Path(output, "_flashray", "index.parquet").stat().st_size
        images = restart(steps, run)
        headers = headers_a_cpu_second(folder)
    print(f"{images:,} keys in {config.shards:,} shards; the kept index is {size / 1e6:.0f} MB\n")
    print(to_markdown(steps.rows))
    print(f"{headers:,.0f} headers a CPU second are read from a local tar of {HEADERS:,} images of 3 kB")


if __name__ == "__main__":
    sys.exit(run_command(ListShardsConfig, list_shards, "benchmarks.list_shards"))
