"""What `open_image` makes of plain files, squares, PNG bytes and contact sheets."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from flashray.errors import ImageError
from flashray.images import (
    IMAGE_SUFFIXES,
    contact_sheet,
    encode_png,
    fit_image,
    from_uint8,
    open_image,
    to_uint8,
)

WIDTH, HEIGHT = 40, 24


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A crop of a cat; not square, so that a wrong turn is noticed."""
    return Image.fromarray(data.chelsea()[80 : 80 + height, 100 : 100 + width])


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def pixels(x_CHW: Tensor) -> np.ndarray:
    return to_uint8(x_CHW).permute(1, 2, 0).numpy()


def test_decodes_to_float_rgb_in_range() -> None:
    x = open_image(saved(photo())).pixels
    assert x.shape == (3, HEIGHT, WIDTH)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert -1 <= x.min() < x.max() <= 1
    np.testing.assert_array_equal(pixels(x), np.asarray(photo()))


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_that_an_archive_lists_can_be_decoded(suffix: str) -> None:
    Image.init()
    x = open_image(saved(photo(), Image.EXTENSION[suffix])).pixels
    assert np.abs(pixels(x).astype(int) - np.asarray(photo())).mean() < 12  # some of the formats lose a little


def test_an_upright_corner_ends_where_the_eye_expects_it() -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the top of the scene is the right side of the stored picture's left column
    x = open_image(saved(image, exif=exif)).pixels
    assert x.shape == (3, WIDTH, HEIGHT)
    assert (x[:, 0, -1] == 1).all()  # stored top left is shown top right
    assert (x == 1).sum() == 3


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format: str) -> None:
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    x = open_image(saved(Image.fromarray(ramp), format)).pixels
    expected = torch.from_numpy(ramp.astype(np.float32)) / 65535 * 2 - 1
    torch.testing.assert_close(x, expected.expand(3, -1, -1), rtol=0, atol=1e-6)


def test_sixteen_bit_grey_is_turned_too() -> None:
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[274] = 6
    x = open_image(saved(Image.fromarray(ramp), exif=exif)).pixels
    expected = torch.from_numpy(np.rot90(ramp, -1).astype(np.float32)) / 65535 * 2 - 1
    torch.testing.assert_close(x[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_bilevel_become_rgb(mode: str) -> None:
    image = photo().convert(mode)
    np.testing.assert_array_equal(pixels(open_image(saved(image)).pixels), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb() -> None:
    encoded = saved(photo().convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(encoded)).mode == "CMYK"
    assert np.abs(pixels(open_image(encoded).pixels).astype(int) - np.asarray(photo())).mean() < 6


def test_palette_becomes_rgb() -> None:
    image = photo().quantize(64)
    assert image.mode == "P"
    np.testing.assert_array_equal(pixels(open_image(saved(image)).pixels), np.asarray(image.convert("RGB")))


def test_pixels_of_a_png_that_do_not_match_their_checksum_are_an_error_though_they_can_be_unpacked() -> None:
    def split(data: bytes) -> tuple[bytes, bytes]:
        """Before and after the checksum's place."""
        kind = data.index(b"IDAT")
        end = kind + 4 + int.from_bytes(data[kind - 4 : kind])
        return data[:end], data[end:]

    (_, checksum_of_dark), (light, _) = (split(saved(Image.new("RGB", (96, 96), c), "PNG")) for c in ("black", "white"))
    strange = light + checksum_of_dark
    with Image.open(io.BytesIO(strange)) as image:
        image.load()
    with pytest.raises(ImageError, match="checksum"):
        open_image(strange)


def test_numbers_of_unknown_range_are_refused() -> None:
    for pixels_HW in (np.full((20, 20), 1e6, np.float32), np.full((20, 20), 70_000, np.int32)):
        with pytest.raises(ImageError, match="unknown range"):
            open_image(saved(Image.fromarray(pixels_HW), "TIFF"))


def test_eight_bits_survive_the_way_there_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(levels)
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(to_uint8(x), levels)
    assert to_uint8(torch.tensor([-1.7, 0.0, 3.0])).tolist() == [0, 128, 255]


def test_png_is_lossless_and_its_bytes_depend_on_the_pixels_alone() -> None:
    x = open_image(saved(photo(), pnginfo=None, dpi=(300, 300))).pixels
    encoded = encode_png(x)
    assert encode_png(x.clone()) == encoded
    assert encode_png(x.permute(1, 2, 0).contiguous().permute(2, 0, 1)) == encoded  # whatever the strides
    assert encode_png(open_image(encoded).pixels) == encoded
    assert encode_png(-x) != encoded
    image = Image.open(io.BytesIO(encoded))
    assert (image.mode, image.info) == ("RGB", {})


def test_png_of_what_is_not_finite_is_refused() -> None:
    x = torch.zeros(3, 16, 16)
    x[0, 0, 0] = torch.nan
    with pytest.raises(ImageError, match="not finite"):
        encode_png(x)


@pytest.mark.parametrize("fit", ["resize", "crop", "error"])
def test_an_image_that_fits_is_left_alone(fit: Any) -> None:
    x = open_image(saved(photo(32, 32))).pixels
    assert torch.equal(fit_image(x, 32, fit), x)


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (300, 40), (17, 90)])
def test_resize_gives_the_square_in_the_middle(width: int, height: int) -> None:
    grey = torch.linspace(-1, 1, width).expand(3, height, width)
    x = fit_image(grey, 32, "resize")
    assert x.shape == (3, 32, 32)
    assert x.min() >= -1
    assert x.max() <= 1
    assert x.mean() == pytest.approx(0, abs=1e-3)  # centred
    assert (x[0, 0].diff() > 0).all()  # neither turned nor mirrored


def test_resize_is_antialiased() -> None:
    checks = (torch.arange(128)[:, None] + torch.arange(128)[None]).remainder(2).float().mul(2).sub(1)
    assert fit_image(checks.expand(3, -1, -1), 32, "resize").abs().max() < 0.1


def test_crop_takes_the_centre_as_it_is() -> None:
    x = open_image(saved(photo(48, 40))).pixels
    assert torch.equal(fit_image(x, 32, "crop"), x[:, 4:36, 8:40])


def test_images_that_do_not_fit_name_their_size() -> None:
    x = torch.zeros(3, HEIGHT, WIDTH)
    with pytest.raises(ImageError, match="40 x 24 pixels, too few to crop 32 x 32"):
        fit_image(x, 32, "crop")
    with pytest.raises(ImageError, match="40 x 24 pixels, not 32 x 32"):
        fit_image(x, 32, "error")


def test_contact_sheet_shows_every_image_once_and_unscaled() -> None:
    cat = open_image(saved(photo(64, 48))).pixels
    sheet = np.asarray(
        contact_sheet(
            [[cat, -cat], [None, cat]], ["degraded", "ẑ decoded"], ["σ̂ 0.31\n52 steps", "bad\tname\udcff.png"]
        )
    )
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (48, 64, 3))[:, :, 0]
    assert np.all(windows == pixels(cat), axis=(2, 3, 4)).sum() == 2
    assert np.all(windows == pixels(-cat), axis=(2, 3, 4)).sum() == 1


def test_contact_sheet_wants_titles_that_match() -> None:
    x = torch.zeros(3, 16, 16)
    with pytest.raises(ValueError, match="one title a column"):
        contact_sheet([[x, x]], ["one"])
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([[None]], ["one"])
