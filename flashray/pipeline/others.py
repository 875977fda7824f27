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
from flashray.pipeline.outputs import is_relative_name
from flashray.pipeline.run_config import IoConfig
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_tables import parquet, read_table
from flashray.shown import storable

# One row a file; `error` says why it could not be copied
OTHERS = pa.schema([("key", pa.string()), ("size", pa.int64()), ("error", pa.string())])
_COPIERS = 4
_LARGE, _MOST = 2**28, 5 * 2**30  # bytes: of files that are copied alone, and of those that no store takes in one put
_OF_THE_FILE = (errno.EIO, errno.ENAMETOOLONG)  # failures that other files do not share
_RECORD = "others.parquet"
log = logging.getLogger(__name__)


def copy_others(run: IoConfig, others: Sequence[storage.Entry], again: bool = False) -> None:
    """Copy these files of the archive to the same keys below the output, and record them; not those recorded before.

    An interrupted copy begins anew. A file that cannot be read is recorded with the reason, and tried `again` if that
    is asked. OSError where the output takes no more, such as a full disk.
    """
    before = _recorded(run.output, again)
    known = set(before["key"].to_pylist())
    if others_copied(run.output, others, again):
        return

    one_at_a_time = Lock()  # a store takes a file from memory

    def copy(entry: storage.Entry) -> dict[str, Any]:
        row: dict[str, Any] = {"key": storable(entry.key), "size": entry.size, "error": None}
        try:
            if not is_relative_name(entry.key):
                raise OSError("it is no name below the output")
            source = storage.join(run.archive, entry.key)
            storage.refuse_special(source)
            if entry.size > _MOST and not storage.is_local(run.output):
                raise OSError("it is larger than the 5 GiB that an object store takes in one put; copy it yourself")
            with storage.opened(source) as file:
                file.read(1)
        except storage.Unavailable:
            raise
        except (OSError, UnicodeError) as error:
            row["error"] = str(error)
        else:
            try:
                with one_at_a_time if entry.size > _LARGE else nullcontext():
                    storage.copy(source, storage.join(run.output, entry.key))
            except OSError as error:
                if error.errno not in _OF_THE_FILE:
                    raise
                row["error"] = str(error)
        if row["error"] is not None:
            log.warning("%s is not copied: %s", row["key"], row["error"])
        return row

    with ThreadPoolExecutor(_COPIERS) as copiers:
        rows = list(copiers.map(copy, (entry for entry in others if storable(entry.key) not in known)))
    table = pa.concat_tables([before, pa.Table.from_pylist(rows, schema=OTHERS)])
    storage.put_bytes(run_uri(run.output, _RECORD), parquet(table))


def _recorded(output: str, again: bool) -> pa.Table:
    """The record, without the files that could not be copied if these are to be tried again."""
    before = read_others(output)
    return before.filter(pc.is_null(before["error"])) if again else before


def others_copied(output: str, others: Sequence[storage.Entry], again: bool = False) -> bool:
    """Whether a run has copied all of these files; where they are not to be tried `again`, or has tried to."""
    known = set(_recorded(output, again)["key"].to_pylist())
    return storage.exists(run_uri(output, _RECORD)) and all(storable(entry.key) in known for entry in others)


def read_others(output: str) -> pa.Table:
    """The record of the copied files: a table of `OTHERS`, empty where none were copied."""
    try:
        return read_table(run_uri(output, _RECORD), OTHERS, "delete it, and the same command copies the files again")
    except FileNotFoundError:
        return OTHERS.empty_table()
