"""Where the bytes of an image lie."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import NamedTuple

from flashray import storage
from flashray.shards.parquet_shard import read_rows


class Place(NamedTuple):
    """An image is a file; or `length` bytes of one from `offset` on; or, without a length, its row `offset`."""

    uri: str
    offset: int | None = None  # None for a file of its own
    length: int | None = None

    @property
    def is_row(self) -> bool:
        return self.offset is not None and self.length is None

    @property
    def name(self) -> str:
        """The file's name, and where in it."""
        return posixpath.basename(self.uri) + ("" if self.offset is None else f" at {self.offset}")

    def __str__(self) -> str:
        return posixpath.join(posixpath.dirname(self.uri), self.name)

    def read_bytes(self) -> bytes:
        """The image's bytes; errors as of `read_places`, and OSError where a row has none."""
        (data,) = read_places([self])
        if data is None:
            raise OSError(f"{self} holds no image")
        return data


def read_places(places: Sequence[Place]) -> list[bytes | None]:
    """The bytes of images that lie in one file, without reading the rest of a tar; None for a row without an image.

    Of a Parquet file the row groups are read that hold the rows. Raises what `storage.read_bytes` raises, and
    ValueError where the file is no sound Parquet.
    """
    if places[0].is_row:
        return read_rows(places[0].uri, [place.offset or 0 for place in places])
    return [
        storage.read_bytes(uri) if offset is None or length is None else storage.read_range(uri, offset, length)
        for uri, offset, length in places
    ]
