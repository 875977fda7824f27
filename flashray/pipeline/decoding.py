"""From a file's bytes to a photo that can be measured, in the actors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from flashray.degradations.base import alike
from flashray.errors import ImageError
from flashray.images import MAX_MEGAPIXELS, OutputFormat, check_side, losses, open_image, read_header
from flashray.measurement import Photo
from flashray.pipeline.encoding import refuse_losses
from flashray.pipeline.load import mask_uri_of
from flashray.pipeline.pixel_budget import PixelBudget, counted_pixels
from flashray.pipeline.run_config import IoConfig
from flashray.restorer import Restorer


def batches(
    restorer: Restorer,
    unit: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    indices: Iterable[int],
    count: int,
    io: IoConfig,
    budget: PixelBudget,
) -> Iterator[list[int]]:
    """The indices of images that can be decoded together: of one size, in batches bounded by their pixels.

    Only headers are read, and so only as many pixels are decoded at once as a batch has. A row gets the size of its
    file; an error where the file is no image, is not of the size that its plan says, or cannot be solved or written at
    its size. `unit` is a loaded unit, or a chunk of the plan pass; `count` is a batch's number of images of the prior's
    size; `budget` refuses images that this machine cannot hold.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for i in indices:
        row = rows[i]
        try:
            header = read_header(unit["data"][i], io.max_megapixels)
            size, seen = (header.width, header.height), restorer.image_size((header.height, header.width))
            megapixels = io.samples * seen[0] * seen[1] / 1e6
            if io.samples > 1 and megapixels > io.max_megapixels:
                raise ImageError(
                    f"{io.samples} samples of {seen[1]} x {seen[0]} pixels have {megapixels:.1f} megapixels, and the "
                    f"limit is {io.max_megapixels:g}; take fewer samples, or a higher --max-megapixels"
                )
            planned = (row.get("width"), row.get("height"))
            if None not in planned and planned != size:
                raise ImageError(
                    f"the file had {planned[0]} x {planned[1]} pixels when the run was planned, and has now "
                    f"{size[0]} x {size[1]}; --retry-failed plans it again"
                )
            restorer.check_photo(seen)
            check_side((seen[1], seen[0]), header.format, io.format)
            budget.check(seen[1], seen[0])
        except ImageError as error:
            row["error"] = str(error)
            continue
        height, width = restorer.grid.padded_size(seen)
        row |= {"width": size[0], "height": size[1], "pixels": height * width}
        row["windows"] = len(restorer.grid.windows(seen))
        by_size.setdefault(seen, []).append(i)
    for size, some in by_size.items():
        most = restorer.batch_size(size, count)
        yield from (some[first : first + most] for first in range(0, len(some), most))


def most_pixels(rows: Sequence[Mapping[str, Any]], indices: Iterable[int]) -> int:
    """The `counted_pixels` of the largest of these images whose size is known."""
    return max(
        (counted_pixels(rows[i]["width"], rows[i]["height"]) for i in indices if rows[i].get("width")), default=0
    )


def decode_photos(
    restorer: Restorer,
    unit: Mapping[str, Any],
    rows: Sequence[dict[str, Any]],
    indices: Iterable[int],
    given: str,
    io: IoConfig,
) -> list[tuple[list[Photo], list[int]]]:
    """(photos that can be measured together, their indices) of a batch: `alike`, so mostly all of them.

    Those that cannot be decoded or measured get an error in their rows. So do those of which a strict run would lose
    something. With the format `same` the writer decides: an image that does not change loses nothing. `given` names the
    column with the images' parameters.
    """
    sound: list[tuple[Photo, int]] = []
    for i in indices:
        arguments = (unit[name][i] for name in ("key", "data", given, "noise_std", "mask_data"))
        try:
            whole_in = io.format if io.strict and io.format != "same" else None
            photo = decode_photo(restorer, *arguments, max_megapixels=io.max_megapixels, whole_in=whole_in)
            sound.append((photo, i))
        except ImageError as error:
            rows[i]["error"] = str(error)
    kinds = alike(sound, lambda one: (one[0].x, one[0].parameters))
    return [([photo for photo, _ in some], [i for _, i in some]) for some in kinds]


def decode_photo(
    restorer: Restorer,
    key: str,
    data: bytes,
    given: str | None,
    noise_std: float | None,
    mask_data: bytes | None,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
    whole_in: OutputFormat | None = None,
) -> Photo:
    """An image that can be measured, from its file's bytes.

    `given` is JSON of the operator's parameters, or of its mask's URI, from the manifest or the plan; `whole_in` is a
    format that has to hold all that the file has, None for no such demand. ImageError, with the reason, where it is no
    valid image, is larger than `max_megapixels`, does not fit, or its parameters are not known.
    """
    source = open_image(data, max_megapixels)
    if whole_in is not None:
        refuse_losses(losses(source, whole_in))
    image = source.pixels
    values = json.loads(given or "{}")
    mask = None
    if "mask" in values:
        if mask_data is None:
            raise ImageError("the manifest does not give its mask")
        mask = _decode_mask(restorer, mask_data, values["mask"], image, max_megapixels)
        values = {}
    return restorer.photo(key, image, values, noise_std, mask)


def decode_reference(restorer: Restorer, data: bytes | None, max_megapixels: float = MAX_MEGAPIXELS) -> Tensor | None:
    """The clean image in the form that restored ones have; None where it cannot be read."""
    if data is None:
        return None
    try:
        return restorer.reference_frame.take(open_image(data, max_megapixels).pixels)
    except ImageError:
        return None


def kept_parameters(photo: Photo, given: str | None) -> str:
    """One image's parameters as JSON, from which `decode_photo` makes the same again; of a mask, its URI."""
    values: dict[str, Any]
    if "mask" in photo.parameters:
        values = {"mask": mask_uri_of(given)}
    else:
        values = {name: value.item() for name, value in photo.parameters.items()}
    return json.dumps(values)


def _decode_mask(restorer: Restorer, data: bytes, uri: str, image_CHW: Tensor, max_megapixels: float) -> Tensor:
    try:
        return restorer.frame.take_mask(open_image(data, max_megapixels).pixels, image_CHW)
    except ImageError as error:
        raise ImageError(f"its mask {uri} cannot be used: {error}") from error
