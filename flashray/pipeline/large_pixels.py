"""How large an archive's large images are, before any is planned."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.errors import ImageError
from flashray.images import read_header
from flashray.pipeline.load import read_images
from flashray.pipeline.pixel_budget import counted_pixels
from flashray.shards.place import Place

SAMPLE = 16  # images whose files are read
READ = 16 * 2**20  # bytes of a file that is read; of a larger one the pixels follow from its size
_BYTES = 6  # of a pixel of an uncompressed file of 16 bits a channel
LARGE = 0.75  # of the sample's images have no more pixels than a large one


def large_pixels(listing: pa.Table, max_megapixels: float) -> int:
    """About the `counted_pixels` that three quarters of the images do not exceed, from a sample; 0 if none is known."""
    listing = listing.filter(pc.is_null(listing["refused"]))
    count = min(SAMPLE, len(listing))
    rows = listing.take(pa.array(np.arange(count) * len(listing) // max(count, 1))).to_pylist()
    pixels = [row["size"] // _BYTES for row in rows if row["size"] > READ]
    for row in rows:
        place = Place(row["uri"], row["offset"], row["length"])
        if row["size"] > READ or place.is_row:  # a row of Parquet is read with its row group
            continue
        try:
            (file,) = read_images([place], [None])
            if file.data is not None:
                header = read_header(file.data, max_megapixels)
                pixels.append(counted_pixels(header.width, header.height))
        except storage.Unavailable:  # the workers wait for it to come back
            break
        except ImageError:  # its row will say so
            continue
    return int(np.quantile(pixels, LARGE, method="higher")) if pixels else 0
