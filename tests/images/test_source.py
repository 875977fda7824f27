"""What `open_image` makes of every kind of file, and what it refuses."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps

from flashray.errors import ImageError
from flashray.images import encode_like, from_uint8, open_image, read_header, to_uint8
from tests.support import profiles
from tests.support.image_files import (
    HEIGHT,
    WIDTH,
    colour_photo,
    deep,
    grey_photo,
    phone_exif,
    png_by_hand,
    saved,
    saved_tiff,
    soft_alpha,
)


def levels(x_CHW: torch.Tensor) -> np.ndarray:
    return to_uint8(x_CHW).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"])
def test_plain_colour_is_what_pillow_decodes(format: str) -> None:
    data = saved(colour_photo(), format)
    source = open_image(data)
    assert source.pixels.dtype == torch.float32
    assert source.pixels.is_contiguous()
    decoded = from_uint8(torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1))
    torch.testing.assert_close(source.pixels, decoded, rtol=0, atol=1e-6)
    assert (source.format, source.kind, source.depth, source.size) == (format, "rgb", 8, (WIDTH, HEIGHT))
    assert source.alpha is None
    assert not source.neutral
    assert (source.icc, source.exif, source.xmp, source.warnings, source.dropped) == (None, None, None, (), ())
    assert source.lossless == (format not in ("JPEG", "WEBP"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "PPM"])
def test_grey_stays_one_channel(format: str) -> None:
    source = open_image(saved(grey_photo(), format))
    assert (source.kind, source.depth, source.neutral) == ("grey", 8, True)
    assert source.samples.shape == (HEIGHT, WIDTH, 1)
    assert torch.equal(source.pixels[0], source.pixels[1])
    assert torch.equal(source.pixels[0], source.pixels[2])


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_sixteen_bits_keeps_every_bit(colour: int, channels: int) -> None:
    photo = np.concatenate([colour_photo(), soft_alpha()[..., None]], axis=-1)
    values = deep(photo[..., {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]])
    source = open_image(png_by_hand(values, 16, colour))
    colours = values[..., : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(source.samples, colours)
    if channels in (2, 4):
        np.testing.assert_array_equal(source.alpha, values[..., -1])
    assert (source.kind, source.depth) == ("grey" if channels < 3 else "rgb", 16)
    expected = torch.from_numpy(colours.astype(np.float64) / 32767.5 - 1).float().permute(2, 0, 1)
    torch.testing.assert_close(source.pixels, expected.expand(3, -1, -1), rtol=0, atol=3e-7)


def test_png_of_sixteen_bits_may_be_filtered_in_every_way() -> None:
    """Written by this package's own filters, read by zlib and Pillow's."""
    values = deep(colour_photo(200, 150))
    source = open_image(png_by_hand(values, 16, 2))
    again = encode_like(source.pixels, source).data
    assert len(again) < values.nbytes
    np.testing.assert_array_equal(open_image(again).samples, values)


def test_interlaced_png_of_sixteen_bits() -> None:
    values = deep(colour_photo(16, 16))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for y, x, dy, dx in passes for row in values[y::dy, x::dx]]
    body = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    np.testing.assert_array_equal(open_image(data).samples, values)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # what Pillow says of a BigTIFF that it does not read
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", ["grey", "rgb", "rgba", "tiles", "predictor", "planes", "big"])
def test_tiff_of_sixteen_bits_keeps_every_bit(order: str, compression: str | None, layout: str) -> None:
    values = deep(colour_photo())
    options: dict[str, Any] = {"photometric": "rgb", "byteorder": order, "compression": compression, "rowsperstrip": 7}
    if layout == "grey":
        values, options["photometric"] = values[..., :1], "minisblack"
    elif layout == "rgba":
        values = np.concatenate([values, deep(soft_alpha())[..., None]], axis=-1)
        options["extrasamples"] = ["unassalpha"]
    elif layout == "tiles":
        options |= {"tile": (16, 32)}
        del options["rowsperstrip"]
    elif layout == "predictor":
        options["predictor"] = compression is not None
    elif layout == "big":
        options["bigtiff"] = True
        if order == ">":  # Pillow reads none of these
            with pytest.raises(ImageError, match="a TIFF of a kind that is not read"):
                open_image(saved_tiff(values, **options))
            return
    elif layout == "planes":
        with pytest.raises(ImageError, match="separate planes"):
            open_image(saved_tiff(values.transpose(2, 0, 1), **options, planarconfig="separate"))
        return
    source = open_image(saved_tiff(values.squeeze(), **options))
    np.testing.assert_array_equal(source.samples, values[..., :3])
    assert source.depth == 16
    if layout == "rgba":
        np.testing.assert_array_equal(source.alpha, values[..., 3])


def test_tiff_with_lzw_and_a_predictor() -> None:
    """The compression of image editors: Pillow writes it for 16-bit grey and 8-bit colour."""
    values = deep(grey_photo())
    data = saved(values, "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
    np.testing.assert_array_equal(open_image(data).samples[..., 0], values)


def test_tiff_where_white_is_zero() -> None:
    values = deep(grey_photo())
    data = saved_tiff(65_535 - values, photometric="miniswhite")
    np.testing.assert_array_equal(open_image(data).samples[..., 0], values)
    eight = saved_tiff(255 - grey_photo(), photometric="miniswhite")
    np.testing.assert_array_equal(open_image(eight).samples[..., 0], grey_photo())


def test_tiff_of_sixteen_bits_multiplied_by_alpha() -> None:
    colours, alpha = deep(colour_photo()), deep(soft_alpha())
    multiplied = np.rint(colours * (alpha[..., None] / 65_535)).astype(np.uint16)
    data = saved_tiff(
        np.concatenate([multiplied, alpha[..., None]], axis=-1), photometric="rgb", extrasamples=["assocalpha"]
    )
    source = open_image(data)
    np.testing.assert_array_equal(source.alpha, alpha)
    opaque = alpha > 40_000
    assert np.abs(source.samples.astype(int) - colours)[opaque].max() <= 1


@pytest.mark.parametrize("magic", ["P5", "P6"])
@pytest.mark.parametrize("most", [65_535, 1023])
def test_netpbm_of_sixteen_bits(magic: str, most: int) -> None:
    values = (deep(colour_photo()).astype(np.int64) * most // 65_535).astype(np.uint16)
    values = values[..., :1] if magic == "P5" else values
    data = f"{magic}\n# a comment\n{WIDTH} {HEIGHT}\n{most}\n".encode() + values.astype(">u2").tobytes()
    np.testing.assert_array_equal(open_image(data).samples, np.rint(values * (65_535 / most)).astype(np.uint16))
    with pytest.raises(ImageError, match="damaged"):
        open_image(data[:-10])


def test_floating_point_tiff() -> None:
    values = (grey_photo() / 255).astype(np.float32)
    source = open_image(saved_tiff(values))
    assert (source.kind, source.depth) == ("grey", 32)
    np.testing.assert_array_equal(source.samples[..., 0], values)
    for bad, reason in ((np.nan, "not finite"), (np.inf, "not finite"), (-0.1, "unknown range"), (2, "unknown range")):
        broken = values.copy()
        broken[3, 3] = bad
        with pytest.raises(ImageError, match=reason):
            open_image(saved_tiff(broken))
    with pytest.raises(ImageError, match="3 samples of 32 bits, floating point"):
        open_image(saved_tiff((colour_photo() / 255).astype(np.float32), photometric="rgb"))


def test_alpha_is_kept_apart_and_colours_below_it_too() -> None:
    values = np.concatenate([colour_photo(), soft_alpha()[..., None]], axis=-1)
    for data in (saved(values), saved(values, "TIFF"), saved(values, "WEBP", lossless=True, exact=True)):
        source = open_image(data)
        np.testing.assert_array_equal(source.samples, values[..., :3])
        np.testing.assert_array_equal(source.alpha, values[..., 3])
        np.testing.assert_array_equal(levels(source.pixels), values[..., :3])


def test_palette_with_transparency_becomes_colour_with_alpha() -> None:
    image = Image.fromarray(colour_photo()).quantize(32)
    source = open_image(saved(image, transparency=3))
    expected = np.asarray(Image.open(io.BytesIO(saved(image, transparency=3))).convert("RGBA"))
    np.testing.assert_array_equal(source.samples, expected[..., :3])
    np.testing.assert_array_equal(source.alpha, expected[..., 3])


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png(bits: int) -> None:
    values = colour_photo() if bits == 8 else deep(colour_photo())
    clear = (b"tRNS", struct.pack(">3H", *values[5, 7].tolist()))
    source = open_image(png_by_hand(values, bits, 2, clear))
    assert source.alpha is not None
    np.testing.assert_array_equal(source.alpha == 0, (values == values[5, 7]).all(axis=-1))
    np.testing.assert_array_equal(source.samples, values)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(colour_photo(), format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    source = open_image(data)
    np.testing.assert_array_equal(source.samples, np.asarray(upright))
    header = read_header(data)
    assert (header.width, header.height) == source.size == upright.size


def test_orientation_of_sixteen_bit_colour() -> None:
    values = deep(colour_photo())
    exif = Image.Exif()
    exif[274] = 6
    data = png_by_hand(values, 16, 2, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    np.testing.assert_array_equal(open_image(data).samples, np.rot90(values, -1))
    tiff = saved_tiff(values, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(open_image(tiff).samples, np.rot90(values, -1))


@pytest.mark.parametrize("profile", [profiles.display_p3(), profiles.adobe_like()])
@pytest.mark.parametrize("bits", [8, 16])
def test_colours_go_through_the_profile(profile: bytes, bits: int) -> None:
    photo = colour_photo()
    there = ImageCms.profileToProfile(
        Image.fromarray(photo),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    data = saved(photo, icc_profile=profile)
    if bits == 16:
        data = saved_tiff(photo.astype(np.uint16) * 257, photometric="rgb", iccprofile=profile)
    source = open_image(data)
    assert source.icc == profile
    assert source.warnings == ()
    difference = np.abs(levels(source.pixels).astype(int) - np.asarray(there))
    assert difference.max() <= 1
    assert np.abs(np.asarray(there).astype(int) - photo).mean() > 2  # it does something


@pytest.mark.parametrize("curve", [profiles.srgb_curve(), profiles.gamma(1.0), profiles.table_curve(2.1)])
def test_sixteen_bits_go_through_curves_of_every_kind(curve: bytes) -> None:
    profile = profiles.rgb(profiles.ADOBE, curve)
    eight = open_image(saved(colour_photo(), icc_profile=profile))
    data = saved_tiff(colour_photo().astype(np.uint16) * 257, photometric="rgb", iccprofile=profile)
    assert (open_image(data).pixels - eight.pixels).abs().max() < 1.6 / 127.5


def test_grey_profiles() -> None:
    profile = profiles.grey(1.8)
    eight = open_image(saved(grey_photo(), icc_profile=profile))
    sixteen = open_image(saved_tiff(grey_photo().astype(np.uint16) * 257, iccprofile=profile))
    assert (eight.kind, eight.warnings) == ("grey", ())
    assert (eight.pixels - sixteen.pixels).abs().max() < 1.6 / 127.5
    assert np.abs(levels(eight.pixels)[..., 0].astype(int) - grey_photo()).mean() > 2
    assert (eight.pixels.amax(dim=0) - eight.pixels.amin(dim=0)).max() < 1.1 / 127.5


def test_a_profile_of_tables_says_that_sixteen_bits_went_through_eight() -> None:
    values = deep(np.asarray(Image.fromarray(colour_photo()).convert("CMYK")))
    data = saved_tiff(values, photometric="separated", iccprofile=profiles.cmyk())
    source = open_image(data)
    np.testing.assert_array_equal(source.samples, values)
    assert (source.kind, source.depth) == ("cmyk", 16)
    assert "8 bits" in source.warnings[0]


@pytest.mark.parametrize(
    "profile", [b"no profile", profiles.display_p3()[:300], profiles.grey(), b"\0" * 200, profiles.cmyk()]
)
def test_a_broken_profile_is_a_warning_and_the_image_is_taken_as_srgb(profile: bytes) -> None:
    source = open_image(saved(colour_photo(), icc_profile=profile))
    assert "taken as sRGB" in source.warnings[0]
    np.testing.assert_array_equal(levels(source.pixels), colour_photo())
    assert source.icc == profile


def test_cmyk_with_and_without_a_profile() -> None:
    inks = Image.fromarray(colour_photo()).convert("CMYK")
    plain = open_image(saved(inks, "TIFF"))
    assert (plain.kind, plain.samples.shape) == ("cmyk", (HEIGHT, WIDTH, 4))
    np.testing.assert_array_equal(levels(plain.pixels), np.asarray(inks.convert("RGB")))
    managed = open_image(saved(inks, "TIFF", icc_profile=profiles.cmyk()))
    assert managed.warnings == ()
    np.testing.assert_array_equal(managed.samples, np.asarray(inks))
    # The profile's inks are the ideal ones that Pillow computes with: the tables' coarseness is the difference.
    assert np.abs(levels(managed.pixels).astype(int) - colour_photo()).mean() < 4


def test_metadata_is_found_wherever_it_stands() -> None:
    exif, xmp = phone_exif(), b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    for data in (
        saved(colour_photo(), "JPEG", exif=b"Exif\0\0" + exif, xmp=xmp, dpi=(300, 200)),
        saved(colour_photo(), "WEBP", exif=exif, xmp=xmp),
        png_by_hand(colour_photo(), 8, 2, (b"eXIf", exif), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)),
    ):
        source = open_image(data)
        assert source.exif == exif
        assert source.xmp == xmp
    assert open_image(saved(colour_photo(), "JPEG", dpi=(300, 200))).dpi == (300, 200)
    assert open_image(saved(colour_photo(), "TIFF", dpi=(300, 200))).dpi == (300, 200)
    assert open_image(saved(colour_photo(), "PNG", dpi=(300, 200))).dpi == pytest.approx((300, 200), abs=0.01)


def test_turned_photos_have_upright_metadata() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    exif = phone_exif(6, thumbnail=saved(colour_photo(16, 12), "JPEG"))
    assert Image.open(io.BytesIO(saved(colour_photo(), "JPEG", exif=b"Exif\0\0" + exif))).getexif()[274] == 6
    source = open_image(saved(colour_photo(), "JPEG", exif=b"Exif\0\0" + exif, xmp=xmp, dpi=(300, 200)))
    assert source.size == (HEIGHT, WIDTH)
    assert source.dpi == (200, 300)
    assert source.xmp == xmp.replace(b'"6"', b'"1"')
    assert source.exif is not None
    assert len(source.exif) == len(exif)  # changed in place
    changed = Image.Exif()
    changed.load(source.exif)
    assert changed[274] == 1
    assert changed.get_ifd(0x8769)[0xA002] == HEIGHT
    assert changed.get_ifd(0x8769)[0xA003] == WIDTH
    assert changed.get_ifd(0x8769)[0x927C] == b"private notes with offsets" * 3
    assert not changed.get_ifd(1)  # the preview


def test_an_orientation_that_only_xmp_names() -> None:
    """Pillow obeys it in TIFF; elsewhere the pixels, and what XMP says of them, stay as they are."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = saved_tiff(deep(colour_photo()), photometric="rgb", extratags=[(700, 1, len(xmp), xmp, True)])
    source = open_image(data)
    header = read_header(data)
    assert source.size == (header.width, header.height) == (HEIGHT, WIDTH)
    assert source.xmp == xmp.replace(b'"6"', b'"1"')
    jpeg = open_image(saved(colour_photo(), "JPEG", xmp=xmp))
    assert (jpeg.size, jpeg.xmp) == ((WIDTH, HEIGHT), xmp)


def test_compressed_xmp_of_a_png() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    packed = b"XML:com.adobe.xmp\0\1\0\0\0"
    source = open_image(png_by_hand(colour_photo(), 8, 2, (b"iTXt", packed + zlib.compress(xmp))))
    assert source.xmp == xmp
    bomb = png_by_hand(colour_photo(), 8, 2, (b"iTXt", packed + zlib.compress(bytes(20 << 20))))
    with pytest.raises(ImageError, match="header is damaged: Decompressed data too large"):
        open_image(bomb)


def test_a_profile_that_is_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = open_image(saved(colour_photo(), icc_profile=profile))
    assert source.icc == profile
    np.testing.assert_array_equal(levels(source.pixels), colour_photo())


def test_a_source_travels_between_processes() -> None:
    source = open_image(saved(colour_photo(), "JPEG", icc_profile=profiles.display_p3()))
    again = pickle.loads(pickle.dumps(source))
    assert encode_like(again.pixels, again) == encode_like(source.pixels, source)


def test_the_room_needs_nothing_of_ray_mlflow_or_fsspec() -> None:
    code = "import sys, flashray.images; print(sorted({'ray', 'mlflow', 'fsspec', 'diffusers'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("exif", [b"", b"garbage", b"MM\0*\0\0\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_does_not_lose_the_photo(exif: bytes) -> None:
    source = open_image(saved(colour_photo(), "JPEG", exif=b"Exif\0\0" + exif))
    assert source.exif is None
    assert source.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 20_000), (20_000, 1), (3, 5)])
def test_any_size_opens(width: int, height: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        source = open_image(saved(values, format))
        assert source.size == (width, height)
        assert source.pixels.shape == (3, height, width)
        np.testing.assert_array_equal(source.samples, values)


def test_the_limit_is_checked_before_memory_is_taken() -> None:
    few = np.zeros((1, 1, 3), np.uint8)
    for width, height in ((10_001, 10_000), (13_377, 13_377), (60_000, 60_000)):
        bomb = png_by_hand(few, 8, 2, size=(width, height))
        for read in (open_image, read_header):
            tracemalloc.start()
            with pytest.raises(ImageError, match=r"too large.*the limit is 100 megapixels"):
                read(bomb)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
            tracemalloc.stop()
    assert read_header(png_by_hand(few, 8, 2, size=(10_001, 10_000)), max_megapixels=101).width == 10_001
    with pytest.raises(ImageError, match=r"60 x 44 pixels or 0.0 megapixels; the limit is 0.001 megapixels"):
        open_image(saved(colour_photo()), max_megapixels=0.001)


def test_the_size_of_a_webp_is_known_before_pillow_makes_its_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"lossless": True}, {"lossless": False}, {"lossless": True, "exif": phone_exif()}):
        data = saved(colour_photo(), "WEBP", **options)
        with monkeypatch.context() as patch:
            patch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
            with pytest.raises(ImageError, match="60 x 44 pixels"):
                open_image(data, max_megapixels=0.001)


def test_animations_and_documents_are_refused() -> None:
    frames = [Image.fromarray(np.roll(colour_photo(), i, axis=1)) for i in range(3)]
    for format in ("PNG", "WEBP"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:])
        for read in (open_image, read_header):
            with pytest.raises(ImageError, match="animation"):
                read(data)
    with pytest.raises(ImageError, match="GIF"):
        open_image(saved(frames[0], "GIF"))
    with pytest.raises(ImageError, match="several pages"):
        open_image(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]))


def test_smaller_versions_inside_a_tiff_are_no_pages() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(colour_photo(), photometric="rgb", metadata=None)
        writer.write(colour_photo()[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    source = open_image(buffer.getvalue())
    np.testing.assert_array_equal(source.samples, colour_photo())
    assert source.dropped == ("the smaller versions of the picture inside the TIFF",)


def test_of_a_phones_several_pictures_the_first_is_taken_and_the_loss_named() -> None:
    phone = saved(colour_photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], quality=95)
    source = open_image(phone)
    assert source.format == "JPEG"
    assert source.dropped == ("the further pictures of the file (MPO)",)
    assert np.abs(levels(source.pixels).astype(int) - colour_photo()).mean() < 6


def test_camera_raw_files_are_refused() -> None:
    dng = saved_tiff(grey_photo(), extratags=[(50706, 1, 4, (1, 4, 0, 0), True)])
    mosaic = saved_tiff(deep(grey_photo()), photometric=32803, extratags=[(33421, 3, 2, (2, 2), True)])
    canon = b"II*\0\x10\0\0\0CR\x02\0" + bytes(100)
    for data in (dng, mosaic, canon):
        with pytest.raises(ImageError, match="raw file"):
            open_image(data)


def test_formats_without_a_plugin_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    heic = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(64)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ImageError, match="pillow-heif"):
        open_image(heic)
    monkeypatch.setattr("PIL.features.check", lambda name: name != "avif")
    with pytest.raises(ImageError, match="pillow-avif-plugin"):
        open_image(struct.pack(">I", 24) + b"ftypavif\0\0\0\0mif1miaf" + bytes(64))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"words, not pixels\n" * 20, "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n", "not an image"),
    ],
)
def test_what_is_no_image_says_so(content: bytes, reason: str) -> None:
    for read in (open_image, read_header):
        with pytest.raises(ImageError, match=reason):
            read(content)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated_files_are_errors(format: str) -> None:
    whole = saved(colour_photo(96, 96), format)
    for share in (0.5, 0.9):
        with pytest.raises(ImageError, match="damaged"):
            open_image(whole[: int(len(whole) * share)])
    deep_png = png_by_hand(deep(colour_photo()), 16, 2)
    with pytest.raises(ImageError, match="damaged"):
        open_image(deep_png[: len(deep_png) // 2])
    deep_tiff = saved_tiff(deep(colour_photo()), photometric="rgb")
    with pytest.raises(ImageError, match="damaged"):
        open_image(deep_tiff[: len(deep_tiff) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow tells what it met on its way
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "deep PNG", "deep TIFF"])
def test_flipped_bytes_never_raise_anything_but_image_errors(kind: str) -> None:
    generator = np.random.default_rng(0)
    if kind == "deep PNG":
        data = png_by_hand(deep(colour_photo(20, 16)), 16, 6 - 4, (b"eXIf", phone_exif(6)))
    elif kind == "deep TIFF":
        data = saved_tiff(deep(colour_photo(20, 16)), photometric="rgb", iccprofile=profiles.adobe_like())
    else:
        options = {"exif": b"Exif\0\0" + phone_exif(6)} if kind in ("JPEG", "PNG", "WEBP") else {}
        icc = {} if kind in ("BMP", "PPM") else {"icc_profile": profiles.display_p3()}
        data = saved(colour_photo(20, 16), kind, **options, **icc)
    whole = np.frombuffer(data, dtype=np.uint8)
    opened = 0
    for trial in range(150):
        broken = whole.copy()
        span = len(whole) if trial % 2 else min(len(whole), 200)
        broken[generator.integers(span, size=3)] = generator.integers(256, size=3)
        try:
            source = open_image(broken.tobytes(), max_megapixels=1)
        except ImageError:
            continue
        opened += 1
        assert torch.isfinite(source.pixels).all()
        try:
            encode_like(source.pixels, source, provenance={"recipe": "photo"})
        except ImageError:
            continue
    assert opened or kind in ("PNG", "deep PNG")
