"""URIs to bytes: local folders, s3:// prefixes and the other schemes of fsspec."""

from __future__ import annotations

from flashray.storage.redaction import redact
from flashray.storage.uri import (
    Entry,
    Unavailable,
    check,
    create_if_absent,
    creates_if_absent,
    delete,
    exists,
    file_size,
    filesystem,
    half_written,
    is_absolute,
    is_inside,
    is_local,
    join,
    list_files,
    normalise,
    put_bytes,
    read_bytes,
)

__all__ = [
    "Entry",
    "Unavailable",
    "check",
    "create_if_absent",
    "creates_if_absent",
    "delete",
    "exists",
    "file_size",
    "filesystem",
    "half_written",
    "is_absolute",
    "is_inside",
    "is_local",
    "join",
    "list_files",
    "normalise",
    "put_bytes",
    "read_bytes",
    "redact",
]
