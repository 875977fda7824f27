"""Every kind of image file that an archive may hold, and what comes out of it."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor

from flashray.errors import ImageError
from flashray.images import (
    IMAGE_SUFFIXES,
    contact_sheet,
    decode_image,
    encode_png,
    fit_image,
    from_uint8,
    image_size,
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


def png(width: int, height: int, bits: int = 8, rows: bytes = b"") -> bytes:
    """An RGB PNG written by hand; without rows it ends after its header: whoever reads its size allocates nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_decodes_to_float_rgb_in_range() -> None:
    x = decode_image(saved(photo()))
    assert x.shape == (3, HEIGHT, WIDTH)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert -1 <= x.min() < x.max() <= 1
    np.testing.assert_array_equal(pixels(x), np.asarray(photo()))


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_that_an_archive_lists_can_be_decoded(suffix: str) -> None:
    Image.init()
    x = decode_image(saved(photo(), Image.EXTENSION[suffix]))
    assert np.abs(pixels(x).astype(int) - np.asarray(photo())).mean() < 12  # some of the formats lose a little


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    encoded = saved(photo(), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    assert upright.size == ((HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT))
    assert image_size(encoded) == upright.size
    np.testing.assert_array_equal(pixels(decode_image(encoded)), np.asarray(upright))


def test_an_upright_corner_ends_where_the_eye_expects_it() -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the top of the scene is the right side of the stored picture's left column
    x = decode_image(saved(image, exif=exif))
    assert x.shape == (3, WIDTH, HEIGHT)
    assert (x[:, 0, -1] == 1).all()  # stored top left is shown top right
    assert (x == 1).sum() == 3


@pytest.mark.parametrize("exif", [b"", b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\x00\x00\xff\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_lose_the_photo(exif: bytes) -> None:
    encoded = saved(photo(), "JPEG", exif=exif)
    assert image_size(encoded) == (WIDTH, HEIGHT)
    assert decode_image(encoded).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(format: str) -> None:
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    x = decode_image(saved(Image.fromarray(ramp), format))
    expected = torch.from_numpy(ramp.astype(np.float32)) / 65535 * 2 - 1
    torch.testing.assert_close(x, expected.expand(3, -1, -1), rtol=0, atol=1e-6)


def test_sixteen_bit_grey_is_turned_too() -> None:
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[274] = 6
    x = decode_image(saved(Image.fromarray(ramp), exif=exif))
    expected = torch.from_numpy(np.rot90(ramp, -1).astype(np.float32)) / 65535 * 2 - 1
    torch.testing.assert_close(x[0], expected, rtol=0, atol=1e-6)


def test_sixteen_bit_colour_is_scaled() -> None:
    colour = np.asarray(photo()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in colour)
    np.testing.assert_array_equal(pixels(decode_image(png(WIDTH, HEIGHT, 16, rows))), np.asarray(photo()))


def test_of_several_frames_the_first_is_taken() -> None:
    phone = saved(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], quality=95)
    assert np.abs(pixels(decode_image(phone)).astype(int) - np.asarray(photo())).mean() < 6


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_bilevel_become_rgb(mode: str) -> None:
    image = photo().convert(mode)
    np.testing.assert_array_equal(pixels(decode_image(saved(image))), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb() -> None:
    encoded = saved(photo().convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(encoded)).mode == "CMYK"
    assert np.abs(pixels(decode_image(encoded)).astype(int) - np.asarray(photo())).mean() < 6


def test_palette_becomes_rgb() -> None:
    image = photo().quantize(64)
    assert image.mode == "P"
    np.testing.assert_array_equal(pixels(decode_image(saved(image))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = photo().convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, WIDTH // 2, HEIGHT))
    alpha.paste(128, (WIDTH // 2, 0, WIDTH // 2 + 4, HEIGHT))
    image.putalpha(alpha)
    shown = pixels(decode_image(saved(image))).astype(int)
    opaque = np.asarray(photo().convert(mode).convert("RGB")).astype(int)
    assert (shown[:, : WIDTH // 2] == 255).all()
    half = slice(WIDTH // 2, WIDTH // 2 + 4)
    assert np.abs(shown[:, half] - (opaque[:, half] * 128 + 255 * 127) / 255).max() <= 1
    np.testing.assert_array_equal(shown[:, WIDTH // 2 + 4 :], opaque[:, WIDTH // 2 + 4 :])


def test_transparent_palette_entry_lies_on_white() -> None:
    image = Image.new("P", (WIDTH, HEIGHT), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
    x = pixels(decode_image(saved(image, transparency=0)))
    assert (x[:, : WIDTH // 2] == 255).all()
    assert (x[:, WIDTH // 2 :] == (0, 0, 200)).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"these are words, not pixels\n" * 20, "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n", "not an image"),
    ],
)
def test_what_is_no_image_says_so(content: bytes, reason: str) -> None:
    for read in (decode_image, image_size):
        with pytest.raises(ImageError, match=reason):
            read(content)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_truncated_files_are_errors_not_grey_areas(format: str) -> None:
    whole = saved(photo(96, 96), format)
    for share in (0.5, 0.9):
        with pytest.raises(ImageError, match="damaged"):
            decode_image(whole[: int(len(whole) * share)])


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
        decode_image(strange)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells what it met on its way
def test_flipped_bytes_never_raise_anything_else() -> None:
    generator = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        whole = np.frombuffer(saved(photo(), format), dtype=np.uint8)
        for _ in range(60):
            broken = whole.copy()
            broken[generator.integers(len(whole), size=4)] = generator.integers(256, size=4)
            try:
                x = decode_image(broken.tobytes())
            except ImageError:
                continue
            assert torch.isfinite(x).all()


@pytest.mark.parametrize("size", [(1, 1), (15, 64), (64, 15)])
def test_too_small_images_name_size_and_limits(size: tuple[int, int]) -> None:
    for read in (decode_image, image_size):
        with pytest.raises(ImageError, match=rf"too small, {size[0]} x {size[1]} pixels; limits: 16 to 16,384"):
            read(saved(Image.new("RGB", size)))


@pytest.mark.parametrize(("width", "height"), [(20_000, 100), (100, 20_000), (20_000, 20_000), (14_000, 14_000)])
def test_too_large_images_are_refused_before_their_pixels_are_read(width: int, height: int) -> None:
    for read in (decode_image, image_size):
        with pytest.raises(ImageError, match=r"too large.*limits: 16 to 16,384 pixels a side, 178,956,970 in all"):
            read(png(width, height))


@pytest.mark.filterwarnings("error")
def test_size_needs_the_header_alone_and_large_photos_do_not_warn() -> None:
    assert image_size(png(12_000, 10_000)) == (12_000, 10_000)


def test_numbers_of_unknown_range_are_refused() -> None:
    for pixels_HW in (np.full((20, 20), 1e6, np.float32), np.full((20, 20), 70_000, np.int32)):
        with pytest.raises(ImageError, match="unknown range"):
            decode_image(saved(Image.fromarray(pixels_HW), "TIFF"))


def test_eight_bits_survive_the_way_there_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    x = from_uint8(levels)
    assert (x[0], x[-1]) == (-1, 1)
    assert torch.equal(to_uint8(x), levels)
    assert to_uint8(torch.tensor([-1.7, 0.0, 3.0])).tolist() == [0, 128, 255]


def test_png_is_lossless_and_its_bytes_depend_on_the_pixels_alone() -> None:
    x = decode_image(saved(photo(), pnginfo=None, dpi=(300, 300)))
    encoded = encode_png(x)
    assert encode_png(x.clone()) == encoded
    assert encode_png(x.permute(1, 2, 0).contiguous().permute(2, 0, 1)) == encoded  # whatever the strides
    assert encode_png(decode_image(encoded)) == encoded
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
    x = decode_image(saved(photo(32, 32)))
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
    x = decode_image(saved(photo(48, 40)))
    assert torch.equal(fit_image(x, 32, "crop"), x[:, 4:36, 8:40])


def test_images_that_do_not_fit_name_their_size() -> None:
    x = torch.zeros(3, HEIGHT, WIDTH)
    with pytest.raises(ImageError, match="40 x 24 pixels, too few to crop 32 x 32"):
        fit_image(x, 32, "crop")
    with pytest.raises(ImageError, match="40 x 24 pixels, not 32 x 32"):
        fit_image(x, 32, "error")


def test_contact_sheet_shows_every_image_once_and_unscaled() -> None:
    cat = decode_image(saved(photo(64, 48)))
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
