"""Which restored files are no longer what their commits say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.pipeline.outputs import Layout
from flashray.pipeline.run_folder import SAMPLES, run_files

_READERS = 16
ROWS = 10_000  # of commits that are Python objects at a time
# what `Layout.promised` looks at
PROMISED = ["key", "unit_id", "offset", "size", "sha256", "shard_size", "shard_sha256", "samples"]


def restored_files(output: str) -> dict[str, int]:
    """Name → size of the files below an output that are not the run's own records; samples are such files too."""
    entries = storage.list_files(output)
    own = run_files([entry.key for entry in entries])
    return {e.key: e.size for e in entries if e.key not in own or e.key.startswith(f"{SAMPLES}/")}


def digests(output: str, names: Iterable[str]) -> dict[str, str]:
    """Name → SHA-256 of these files."""

    def digest(name: str) -> str:
        return hashlib.sha256(storage.read_bytes(storage.join(output, name))).hexdigest()

    names = list(names)
    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip(names, readers.map(digest, names), strict=True))


def missing_and_changed(
    layout: Layout, results: pa.Table, sizes: Mapping[str, int], by_hash: bool
) -> tuple[list[str], list[str]]:
    """Sorted keys of committed images of which a file is not there, and of those of which one has other bytes.

    `results` are rows of commits, `sizes` the bytes of the files that are there (`restored_files`). `by_hash` compares
    the bytes; otherwise their number alone is compared, where the commit has it.
    """
    done = results.filter(pc.equal(results["status"], "ok")).select(PROMISED)
    missing: set[str] = set()
    changed: set[str] = set()
    sound: dict[str, bool] = {}  # of the shards that were read, because many rows name one
    for batch in done.to_batches(ROWS):
        promised = {row["key"]: layout.promised(row) for row in batch.to_pylist()}
        files = {file["name"]: file for some in promised.values() for file in some}
        there = files.keys() & sizes.keys()
        right = {name for name in there if files[name]["size"] in (None, sizes[name])}
        if by_hash:
            found = digests(layout.output, right - sound.keys())
            same = {name: sound.get(name, found.get(name) == files[name]["sha256"]) for name in right}
            right = {name for name in right if same[name]}
            sound |= same if layout.sharded else {}
        missing |= {key for key, some in promised.items() if any(file["name"] not in there for file in some)}
        changed |= {key for key, some in promised.items() if any(file["name"] in there - right for file in some)}
    return sorted(missing), sorted(changed)
