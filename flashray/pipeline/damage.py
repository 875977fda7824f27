"""Which restored files are no longer what their commits say."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.pipeline.outputs import Layout
from flashray.pipeline.run_folder import SAMPLES, run_files

_READERS = 16


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

    Args:
        results: rows of commits.
        sizes: of the files that are there (`restored_files`).
        by_hash: compare the bytes; otherwise their number alone, where the commit has it.
    """
    done = results.filter(pc.equal(results["status"], "ok")).to_pylist()
    promised = {file["name"]: file for row in done for file in layout.promised(row)}
    missing = promised.keys() - sizes.keys()
    there = promised.keys() - missing
    changed = {name for name in there if promised[name]["size"] not in (None, sizes[name])}
    if by_hash:
        found = digests(layout.output, there)
        changed |= {name for name in there if found[name] != promised[name]["sha256"]}
    return _keys_of(missing, layout, done), _keys_of(changed, layout, done)


def _keys_of(files: Collection[str], layout: Layout, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The sorted keys of the images that any of these files belongs to."""
    if not files:
        return []
    return sorted(row["key"] for row in rows if any(file["name"] in files for file in layout.promised(row)))
