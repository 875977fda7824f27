"""The archive's files that are no images: copied as they are, once, and recorded when all are there."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.pipeline.damage import restored_files
from flashray.pipeline.outputs import is_relative_name
from flashray.pipeline.run_config import IoConfig
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_tables import parquet, read_table
from flashray.shown import storable

# One row a file; `error` says why it could not be copied
OTHERS = pa.schema([("key", pa.string()), ("size", pa.int64()), ("error", pa.string())])
_COPIERS = 4
_LARGE, _MOST = 2**28, 5 * 2**30  # bytes: of files that are copied alone, and the most that a store takes in one put
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # failures that the next file shares
_BEGUN = "the run ended before it was copied"
_RECORD = "others.parquet"
log = logging.getLogger(__name__)


def copy_others(run: IoConfig, others: Sequence[storage.Entry], again: bool = False) -> None:
    """Copy these files of the archive to the same keys below the output, and record them; not those recorded and there.

    They are recorded before the first copy too, so that `copied_names` knows the files of a start that was killed. A
    file that cannot be copied is recorded with the reason, and tried `again` if that is asked. OSError where the output
    takes no more, such as a full disk; Unavailable where a store does not answer.
    """
    before = _settled(run.output, again)
    known = set(before["key"].to_pylist())
    todo = [entry for entry in others if storable(entry.key) not in known]
    if not todo and storage.exists(run_uri(run.output, _RECORD)):
        return

    def record(rows: list[dict[str, Any]]) -> None:
        table = pa.concat_tables([before, pa.Table.from_pylist(rows, schema=OTHERS)])
        storage.put_bytes(run_uri(run.output, _RECORD), parquet(table))

    large = Lock()  # these one after the other, because a store takes each from memory

    def copy(entry: storage.Entry) -> dict[str, Any]:
        row: dict[str, Any] = {"key": storable(entry.key), "size": entry.size, "error": None}
        try:
            if not is_relative_name(entry.key):
                raise OSError("it is no name below the output")
            with large if entry.size > _LARGE else nullcontext():
                source, target = (storage.join(place, entry.key) for place in (run.archive, run.output))
                row["size"] = _copy(source, target, entry.size)  # it may have grown since it was listed
        except storage.Unavailable:
            raise
        except (OSError, UnicodeError) as error:
            if isinstance(error, _Refused) or getattr(error, "errno", None) in _FULL:
                raise
            row["error"] = str(error)
            log.warning("%s is not copied: %s", row["key"], error)
        return row

    record([{"key": storable(entry.key), "size": entry.size, "error": _BEGUN} for entry in todo])
    with ThreadPoolExecutor(_COPIERS) as copiers:
        rows = list(copiers.map(copy, todo))
    record(rows)


class _Refused(OSError):
    """The store of the output did not take a file: it would not take the next one either."""


def _copy(source: str, target: str, size: int) -> int:
    """Copy a file that was listed with so many bytes; how many it has now."""
    if storage.is_local(target):
        return storage.copy(source, target)
    if size > _MOST:
        raise OSError("it is larger than the 5 GiB that an object store takes in one put; copy it yourself")
    storage.refuse_special(source)
    data = storage.read_bytes(source)
    try:
        storage.put_bytes(target, data)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise
        raise _Refused(str(error)) from error
    return len(data)


def _settled(output: str, again: bool) -> pa.Table:
    """The record without the files of a start that was killed, and without copies that are gone or of another size.

    With `again`, those that were copied alone.
    """
    found = read_others(output)
    sizes = {storable(name): size for name, size in restored_files(output).items()} if len(found) else {}

    def settled(row: dict[str, Any]) -> bool:
        if row["error"] is None:
            return sizes.get(row["key"]) == row["size"]
        return not again and row["error"] != _BEGUN

    return found.filter(pa.array([settled(row) for row in found.to_pylist()], pa.bool_()))


def others_copied(output: str, others: Sequence[storage.Entry], again: bool = False) -> bool:
    """Whether each of these files is copied and there, or, without `again`, recorded as one that cannot be."""
    known = set(_settled(output, again)["key"].to_pylist())
    return storage.exists(run_uri(output, _RECORD)) and all(storable(entry.key) in known for entry in others)


def copied_names(output: str) -> set[str]:
    """The names below the output that a run has copied, or had begun to copy."""
    found = read_others(output)
    mine = found.filter(pc.is_in(pc.fill_null(found["error"], _BEGUN), pa.array([_BEGUN])))
    return {key for key in mine["key"].to_pylist() if is_relative_name(key)}


def read_others(output: str) -> pa.Table:
    """The record of the copied files: a table of `OTHERS`, empty where none were copied."""
    try:
        return read_table(run_uri(output, _RECORD), OTHERS, "delete it, and the same command copies the files again")
    except FileNotFoundError:
        return OTHERS.empty_table()
