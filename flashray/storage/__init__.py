"""URIs to bytes: local folders, s3:// prefixes and the other schemes of fsspec."""

from __future__ import annotations

from flashray.storage.local_walk import Entry
from flashray.storage.node_cache import cached_folder
from flashray.storage.redaction import redact
from flashray.storage.uri import (
    Unavailable,
    asked,
    check,
    copy,
    create_if_absent,
    creates_if_absent,
    delete,
    exists,
    file_size,
    given,
    half_written,
    is_absolute,
    is_inside,
    is_local,
    join,
    list_everything,
    list_files,
    modified,
    normalise,
    opened,
    put_bytes,
    read_bytes,
    read_range,
    refuse_special,
)

__all__ = [
    "Entry",
    "Unavailable",
    "asked",
    "cached_folder",
    "check",
    "copy",
    "create_if_absent",
    "creates_if_absent",
    "delete",
    "exists",
    "file_size",
    "given",
    "half_written",
    "is_absolute",
    "is_inside",
    "is_local",
    "join",
    "list_everything",
    "list_files",
    "modified",
    "normalise",
    "opened",
    "put_bytes",
    "read_bytes",
    "read_range",
    "refuse_special",
    "redact",
]
