"""What the restored images of a plan will take in storage, estimated from the archive's files."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashray.images import OutputFormat

# Bytes a pixel of photos, measured on restored ones (docs/results/any-size.md): JPEG and WebP at quality 95
LOSSY = {"jpeg": 0.55, "webp": 0.4}
LOSSLESS = {"png": 1.6, "tiff": 3.0}
SPREAD = 0.5  # of a map of the spread
_SUFFIXES = {"jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "webp": (".webp", ".avif", ".heic", ".heif")}


def storage_needed(listing: pa.Table, planned: pa.Table, format: OutputFormat, samples: int = 1) -> int:
    """Bytes, about, of so many samples of each image and the maps of their spread.

    A file that keeps a lossless format is taken to keep its size too; one of a lossy format is written at a high
    quality and does not become smaller.
    """
    row = pc.index_in(planned["key"], listing["key"].combine_chunks())
    planned = planned.filter(pc.is_valid(row))  # an image that failed may have left the archive
    files = listing.take(row.drop_null())
    size = files["size"].to_numpy().astype(np.float64)
    pixels = planned["width"].to_numpy().astype(np.float64) * planned["height"].to_numpy()
    spread = SPREAD * pixels.sum() if samples > 1 else 0.0
    if format != "same":
        return int(samples * (pixels * (LOSSY | LOSSLESS)[format]).sum() + spread)
    names = pc.utf8_lower(files["key"])
    for kind, suffixes in _SUFFIXES.items():
        lossy = np.zeros(len(files), bool)
        for suffix in suffixes:
            lossy |= pc.ends_with(names, suffix).to_numpy()
        size = np.where(lossy, np.maximum(size, pixels * LOSSY[kind]), size)
    return int(samples * size.sum() + spread)
