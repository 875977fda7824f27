"""Which restored files are no longer what their commits say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.images import OutputFormat, output_name
from flashray.pipeline.run_folder import run_files

_READERS = 16


def restored_files(output: str) -> dict[str, int]:
    """Name → size of the files below an output that are not the run's own records."""
    entries = storage.list_files(output)
    own = run_files([entry.key for entry in entries])
    return {entry.key: entry.size for entry in entries if entry.key not in own}


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
    """Sorted keys of committed images whose file is not there, and of those whose file has other bytes.

    Args:
        results: rows of commits.
        sizes: of the files that are there (`restored_files`).
        by_hash: compare the bytes; otherwise their number alone, where the commit has it.
    """
    done = results.filter(pc.equal(results["status"], "ok")).select(["key", "sha256", "size"]).to_pylist()
    name_of = {row["key"]: output_name(row["key"], format) for row in done}
    missing = {row["key"] for row in done if name_of[row["key"]] not in sizes}
    there = [row for row in done if row["key"] not in missing]
    changed = {row["key"] for row in there if row["size"] not in (None, sizes[name_of[row["key"]]])}
    if by_hash:
        found = digests(output, (name_of[row["key"]] for row in there))
        changed |= {row["key"] for row in there if found[name_of[row["key"]]] != row["sha256"]}
    return sorted(missing), sorted(changed)
