"""Rare kinds of files that were once misread, or whose losses were once not named."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from flashray.errors import ImageError
from flashray.images import as_image, encode_like, ifd, metadata, name_of, open_image, tiff

GREY = np.linspace(0, 255, 20 * 12).reshape(12, 20).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize("progressive", [False, True])
def test_what_a_jpeg_holds_besides_its_picture_is_named(progressive: bool) -> None:
    jpeg = saved(Image.fromarray(RGB), "JPEG", progressive=progressive, quality=30)
    assert open_image(jpeg).dropped == ()
    assert open_image(jpeg + b"\0\xff\r\n" * 7).dropped == (), "filling is nothing"
    (dropped,) = open_image(jpeg + b"\0\0\0\x18ftypmp42" + bytes(range(200))).dropped
    assert "motion photo" in dropped
    assert "content credentials" in open_image(with_segment(jpeg, 0xEB, b"JP")).dropped[0]
    commented = with_segment(with_segment(jpeg, 0xFE, b"one"), 0xFE, b"two")
    assert open_image(commented).dropped == ("further comments",)


@pytest.mark.parametrize(("bits", "levels"), [(2, 4), (4, 16)])
def test_transparency_of_a_grey_png_of_few_bits(bits: int, levels: int) -> None:
    rows = np.arange(8 * levels).reshape(levels, 8) % levels
    packed = np.zeros((levels, 8 * bits // 8), np.uint8)
    for column in range(8):
        packed[:, column * bits // 8] |= (rows[:, column] << (8 - bits - column * bits % 8)).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 8, levels, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", levels - 1))
    data += chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    source = open_image(data)
    assert source.alpha is not None
    assert ((source.alpha == 0) == (rows == levels - 1)).all()
    assert (source.samples[..., 0] == rows * (255 // (levels - 1))).all()


def test_a_floating_point_tiff_where_white_is_zero_is_no_negative() -> None:
    values = (GREY / 255).astype(np.float32)[..., None]
    data = tiff.encode(values, "grey", False, None, None, None, None)
    inverted = data.replace(struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    assert inverted != data
    torch.testing.assert_close(open_image(inverted).pixels, -open_image(data).pixels, atol=1e-5, rtol=0)


def test_smaller_pictures_in_sub_directories_of_a_tiff_are_named() -> None:
    tags = ifd.Directory("<", {})
    data = tiff.encode(RGB, "rgb", False, tags, None, None, None)
    main = ifd.read_first(data)
    entries = main.entries | {330: ifd.longs("<", 8)}
    moved = ifd.Directory("<", entries | {273: ifd.longs("<", 0)})
    place = 8 + len(ifd.write(moved, 8))
    strips = data[main.numbers(273)[0] :]
    moved.entries[273] = ifd.longs("<", place)
    found = open_image(ifd.header("<") + ifd.write(moved, 8) + strips)
    assert found.dropped == ("the smaller versions of the picture inside the TIFF",)
    assert (found.samples == RGB).all()


def display_p3() -> bytes:
    """A profile that is clearly not sRGB: sRGB's own with two of its primaries exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for place in range(128, 400):
        if profile[place : place + 4] == b"rXYZ":
            profile[place : place + 4] = b"gXYZ"
        elif profile[place : place + 4] == b"gXYZ":
            profile[place : place + 4] = b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_picture_is_what_its_file_is_with_its_profile(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    profile = {"icc_profile": display_p3()} if mode == "RGB" else {}
    Image.fromarray(RGB).convert(mode).save(path, **profile)
    with Image.open(path) as picture:
        torch.testing.assert_close(as_image(picture), as_image(path), atol=0, rtol=0)
    if profile:
        plain = as_image(Image.fromarray(RGB))
        assert (as_image(path) - plain).abs().max() > 0.2, "the profile counts"


def test_an_orientation_in_xmp_alone_turns_nothing(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    data = saved(Image.fromarray(RGB), "JPEG", xmp=xmp)
    source = open_image(data)
    assert source.size == (20, 12)
    with Image.open(io.BytesIO(data)) as picture:
        assert as_image(picture).shape == (3, 12, 20)
    written = encode_like(source.pixels * 0.9, source, "tiff").data
    assert open_image(written).size == (20, 12)
    with Image.open(io.BytesIO(written)) as picture:
        picture.load()
        assert picture.size == (20, 12)


def test_a_picture_is_turned_by_exif_behind_its_pixels_and_by_what_its_owner_sets() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = saved(Image.fromarray(RGB), "PNG", exif=exif.tobytes())
    start = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    moved = data[:start] + data[start + length : end] + data[start : start + length] + data[end:]
    with Image.open(io.BytesIO(moved)) as picture:
        assert as_image(picture).shape == open_image(moved).pixels.shape == (3, 20, 12)
    owned = Image.fromarray(RGB)
    owned.getexif()[274] = 6
    assert as_image(owned).shape == (3, 20, 12)


def test_a_quarter_turn_exchanges_what_repeats_width_and_height() -> None:
    exif = Image.Exif()
    exif[274], exif[256], exif[257], exif[282], exif[283] = 6, 20, 12, 300.0, 150.0
    source = open_image(saved(Image.fromarray(RGB), "JPEG", exif=exif.tobytes()))
    assert source.size == (12, 20)
    upright = Image.Exif()
    upright.load(source.exif)
    assert [upright[tag] for tag in (274, 256, 257, 282, 283)] == [1, 12, 20, 150.0, 300.0]


def test_the_preview_is_gone_and_not_only_unlinked() -> None:
    preview = saved(Image.fromarray(RGB), "JPEG")
    order, entry = "<", struct.Struct("<HHII")
    main = struct.pack("<H", 1) + struct.pack("<HHIHH", 274, 3, 1, 1, 0)
    second = 8 + len(main) + 4
    behind = second + 2 + 2 * 12 + 4
    exif = ifd.header(order) + main + struct.pack("<I", second) + struct.pack("<H", 2)
    exif += entry.pack(513, 4, 1, behind) + entry.pack(514, 4, 1, len(preview)) + bytes(4) + preview
    assert preview in exif
    assert preview not in metadata.upright_exif(exif, turned=False)
    assert len(metadata.upright_exif(exif, turned=False)) == len(exif)


def test_a_grey_photo_in_three_channels_stays_grey_with_any_profile() -> None:
    values = np.repeat((GREY.astype(np.uint16) * 257)[..., None], 3, axis=-1)
    source = open_image(tiff.encode(values, "rgb", False, None, display_p3(), None, None))
    written = open_image(encode_like(source.pixels * 0.8, source).data).samples
    assert (written[..., :1] == written).all()


def test_sixteen_bits_of_ink_without_a_profile_are_warned_of() -> None:
    inks = np.repeat((GREY.astype(np.uint16) * 257)[..., None], 4, axis=-1)
    assert open_image(tiff.encode(inks, "cmyk", False, None, None, None, None)).warnings == (
        "16 bits of CMYK were converted with 8",
    )


def test_paths_that_cannot_be_are_errors_of_their_own(tmp_path: Path) -> None:
    assert name_of(str(tmp_path) + "/\udcff.png", 0).endswith("/\\xff.png")
    with pytest.raises(ImageError, match="null byte"):
        as_image("a\0b.png")
