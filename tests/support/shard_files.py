"""Shards as other tools write them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def tar_bytes(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these members, as Python's own writer makes it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format) as tar:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def loose_files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its key, sorted."""
    paths = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: str(path.relative_to(folder))
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_tars(folder: Path, files: Mapping[str, bytes], each: int) -> None:
    """Tars of so many files each, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(files)
    for number, first in enumerate(range(0, len(names), each)):
        some = [(name, files[name]) for name in names[first : first + each]]
        (folder / f"{number:05d}.tar").write_bytes(tar_bytes(some))


def write_parquet(path: Path, columns: Mapping[str, Any], rows_of_group: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path, row_group_size=rows_of_group)
