"""Where the photos of a training lie: loose in a folder or an object store, or in shards."""

from __future__ import annotations

import posixpath

from flashray import storage
from flashray.errors import ConfigError
from flashray.images import is_image_name
from flashray.shards.place import Place
from flashray.shards.shard_index import index_shards, shards_among


def list_places(photos: str) -> list[Place]:
    """The images of a folder or prefix, sorted, or in its shards, or in one shard; links inside tars are left out.

    ConfigError when there is none, or a shard is unsound.
    """
    root = storage.normalise(photos)
    size = storage.file_size(root)
    entries = storage.list_files(root)
    if size is not None:
        root, entries = posixpath.dirname(root), [storage.Entry(posixpath.basename(root), size)]
    images = [entry.key for entry in entries if is_image_name(entry.key)]
    shards = shards_among(f"photos {photos}", images, [entry.key for entry in entries])
    found = [Place(storage.join(root, key)) for key in images]
    if shards:
        sizes = [(storage.join(root, entry.key), entry.size) for entry in entries if entry.key in shards]
        rows = index_shards(sizes, is_image_name).select(["uri", "offset", "length", "refused"]).to_pylist()
        found = [Place(row["uri"], row["offset"], row["length"]) for row in rows if row["refused"] is None]
    if not found:
        raise ConfigError(f"photos {photos}: no image files there; name a folder, prefix or shards of photos")
    return found
