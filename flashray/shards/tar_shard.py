"""WebDataset tars: the index of one from its headers alone, and one written from images."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa

from flashray import storage
from flashray.errors import ConfigError
from flashray.shown import storable

_READ_AHEAD = 64 * 1024  # bytes: small images are passed over in one read, large ones are skipped
_BLOCK = 512
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LARGEST_SIDECAR = 2**20  # bytes
_WHOLE = 2**63  # whole numbers of a column are below it
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)  # the sample's name ends at the first dot


def index_tar(uri: str, size: int, is_image: Callable[[str], bool], names: Collection[str]) -> pa.Table:
    """One row an image of a tar of `size` bytes: key, offset, length, size, refused, and those of `names` that it has.

    Only headers are read, and the JSON sidecars of the samples where `names` of numbers are asked for: members whose
    names are the image's up to the first dot. The key is the member's name, by which `is_image` tells whether it is
    one. A link or device that is named like an image has a row that says so. ConfigError when the file is compressed,
    cut short or no tar, or a sidecar cannot be understood.
    """
    rows: list[dict[str, Any]] = []
    given: dict[str, dict[str, float]] = {}
    try:
        with storage.opened(uri) as raw:
            file = io.BufferedReader(raw, _READ_AHEAD)
            _refuse_compressed(uri, file.peek(8)[:8])
            with tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # they are many, and nobody asks for them again
                    whole = member.size if member.isreg() and not member.issparse() else 0
                    if member.offset_data + whole > size:
                        raise tarfile.ReadError(f"its member {member.name!r} ends behind it")
                    name = plain_name(member.name)
                    if member.isdir():
                        continue
                    if is_image(name):
                        rows.append(_row(name, member))
                    elif names and member.isreg() and (found := _SAMPLE.fullmatch(name)) and found[2] == "json":
                        file.seek(member.offset_data)
                        given[found[1]] = _sidecar(uri, name, file.read(min(member.size, _LARGEST_SIDECAR)), names)
                file.seek(tar.offset)
                if file.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError(f"it has no end mark at byte {tar.offset}")
                while rest := file.read(_READ_AHEAD):
                    if rest.strip(b"\0"):
                        raise tarfile.ReadError(
                            "there is more behind its end mark, as of tars put one behind the other"
                        )
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise ConfigError(f"shard {uri} is no sound tar, or cut short ({error}); make it again") from error
    table = pa.Table.from_pylist(rows, schema=_COLUMNS)
    of = [given.get(sample_of(row["key"]), {}) for row in rows]
    for name in sorted({name for one in of for name in one}):
        table = table.append_column(name, pa.array([one.get(name) for one in of]))
    return table


_COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("size", pa.int64()),
        ("refused", pa.string()),
    ]
)


def plain_name(name: str) -> str:
    """A member's name without a leading `./`; bytes that are not UTF-8 are written as \\xNN."""
    return storable(re.sub(r"^(\./)+", "", name))


def sample_of(key: str) -> str:
    """The name of the sample that a member belongs to: its own up to the first dot."""
    found = _SAMPLE.fullmatch(key)
    return found[1] if found else key


def tar_of(images: Iterable[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    """A tar of these (name, bytes), and the offset of each one's bytes. Equal images give equal bytes."""
    target, offsets = io.BytesIO(), []
    with tarfile.TarFile(fileobj=target, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for name, data in images:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            offsets.append(tar.offset - -(-len(data) // _BLOCK) * _BLOCK)
    return target.getvalue(), offsets


def _row(name: str, member: tarfile.TarInfo) -> dict[str, Any]:
    row = {"key": name, "offset": member.offset_data, "length": member.size, "size": member.size, "refused": None}
    if member.issym() or member.islnk():
        row |= {"size": 0, "refused": f"it is a link within its tar, to {plain_name(member.linkname)!r}"}
    elif not member.isreg() or member.issparse():
        row |= {"size": 0, "refused": "it is no plain file within its tar"}
    return row


def _sidecar(uri: str, name: str, data: bytes, names: Collection[str]) -> dict[str, float]:
    try:
        values = json.loads(data)
        if not isinstance(values, Mapping):
            raise ValueError("it is no mapping of names to values")
        found = {key: values[key] for key in names if values.get(key) is not None}
        wrong = [key for key, value in found.items() if isinstance(value, bool) or not isinstance(value, int | float)]
        if wrong:
            raise ValueError(f"{wrong[0]} is {found[wrong[0]]!r} and no number")
        found = {key: value if abs(value) < _WHOLE else float(value) for key, value in found.items()}
    except (ValueError, RecursionError, OverflowError) as error:
        raise ConfigError(f"shard {uri}: the sidecar {name} cannot be understood: {error}") from error
    return found


def _refuse_compressed(uri: str, begin: bytes) -> None:
    kind = next((kind for magic, kind in _COMPRESSED.items() if begin.startswith(magic)), None)
    if kind is not None:
        raise ConfigError(f"shard {uri} is compressed ({kind}), so that one image cannot be read alone; unpack it")
