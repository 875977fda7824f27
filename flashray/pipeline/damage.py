"""Which restored files are no longer what their commits say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.images import OutputFormat, output_name
from flashray.pipeline.run_folder import SAMPLES, run_files

_READERS = 16


def restored_files(output: str) -> dict[str, int]:
    """Name → size of the files below an output that are not the run's own records; samples are none."""
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
    output: str, format: OutputFormat, results: pa.Table, sizes: Mapping[str, int], by_hash: bool
) -> tuple[list[str], list[str]]:
    """Sorted keys of committed images of which a file is not there, and of those of which one has other bytes.

    Args:
        results: rows of commits.
        sizes: of the files that are there (`restored_files`).
        by_hash: compare the bytes; otherwise their number alone, where the commit has it.
    """
    promised = list(_promised(results, format))
    missing = {key for key, file in promised if file["name"] not in sizes}
    there = [(key, file) for key, file in promised if key not in missing]
    changed = {key for key, file in there if file["size"] not in (None, sizes[file["name"]])}
    if by_hash:
        found = digests(output, (file["name"] for _, file in there))
        changed |= {key for key, file in there if found[file["name"]] != file["sha256"]}
    return sorted(missing), sorted(changed)


def _promised(results: pa.Table, format: OutputFormat) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, a `commit.FILE`) of every file that these commits name."""
    done = results.filter(pc.equal(results["status"], "ok")).select(["key", "sha256", "size", "samples"])
    for row in done.to_pylist():
        yield row["key"], {"name": output_name(row["key"], format), "sha256": row["sha256"], "size": row["size"]}
        yield from ((row["key"], file) for file in row["samples"] or ())
