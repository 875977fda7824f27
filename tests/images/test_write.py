"""Round trips: what `encode_like` writes is the photo that `open_image` read, as the same kind of file."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as tree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import tifffile
import torch
from PIL import Image
from skimage import data as photos

from flashray.errors import ImageError
from flashray.images import OutputFormat, SourceImage, encode_like, open_image, output_name, unchanged
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

NOTE = {"recipe": "photo", "σ̂": "0.12", "NFE": "3.5", "run": "4f<&\"'"}
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="an album"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def rgba(deeper: bool = False) -> np.ndarray:
    values = np.concatenate([colour_photo(), soft_alpha()[..., None]], axis=-1)
    return deep(values) if deeper else values


def grey_alpha() -> np.ndarray:
    return np.stack([grey_photo(), soft_alpha()], axis=-1)


def inks() -> Image.Image:
    """A separation of its own: more black than Pillow or the profile would take."""
    values = np.asarray(Image.fromarray(colour_photo()).convert("CMYK")).astype(int)
    black = values[..., :3].min(axis=-1) * 3 // 4
    values[..., :3] -= black[..., None] // 2
    values[..., 3] += black // 2
    return Image.frombytes("CMYK", (WIDTH, HEIGHT), values.clip(0, 255).astype(np.uint8).tobytes())


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "png grey": lambda: saved(grey_photo()),
    "png grey alpha": lambda: saved(grey_alpha()),
    "png rgb": lambda: saved(colour_photo()),
    "png rgba": lambda: saved(rgba()),
    "png palette": lambda: saved(Image.fromarray(colour_photo()).quantize(64)),
    "png palette with transparency": lambda: saved(Image.fromarray(colour_photo()).quantize(64), transparency=3),
    "png bilevel": lambda: saved(Image.fromarray(grey_photo()).convert("1")),
    "png display p3": lambda: saved(colour_photo(), icc_profile=profiles.display_p3()),
    "png adobe rgb with alpha": lambda: saved(rgba(), icc_profile=profiles.adobe_like()),
    "png grey profile": lambda: saved(grey_photo(), icc_profile=profiles.grey()),
    "png broken profile": lambda: saved(colour_photo(), icc_profile=b"this is no profile"),
    "png 16 grey": lambda: saved(deep(grey_photo())),
    "png 16 grey alpha": lambda: png_by_hand(deep(grey_alpha()), 16, 4),
    "png 16 rgb": lambda: png_by_hand(deep(colour_photo()), 16, 2),
    "png 16 rgba": lambda: png_by_hand(rgba(deeper=True), 16, 6),
    "tiff grey": lambda: saved(grey_photo(), "TIFF"),
    "tiff rgb lzw": lambda: saved(colour_photo(), "TIFF", compression="tiff_lzw"),
    "tiff rgba": lambda: saved(rgba(), "TIFF"),
    "tiff 16 grey": lambda: saved_tiff(deep(grey_photo())),
    "tiff 16 rgb": lambda: saved_tiff(deep(colour_photo()), photometric="rgb"),
    "tiff 16 rgb big-endian": lambda: saved_tiff(deep(colour_photo()), photometric="rgb", byteorder=">"),
    "tiff 16 rgb adobe": lambda: saved_tiff(deep(colour_photo()), photometric="rgb", iccprofile=profiles.adobe_like()),
    "tiff 16 rgba": lambda: saved_tiff(rgba(deeper=True), photometric="rgb", extrasamples=["unassalpha"]),
    "tiff 16 grey profile": lambda: saved_tiff(deep(grey_photo()), iccprofile=profiles.grey()),
    "tiff 16 cmyk": lambda: saved_tiff(deep(np.asarray(inks())), photometric="separated", iccprofile=profiles.cmyk()),
    "tiff float": lambda: saved_tiff((deep(grey_photo()) / 65_535).astype(np.float32)),
    "tiff float big-endian": lambda: saved_tiff((deep(grey_photo()) / 65_535).astype(np.float32), byteorder=">"),
    "tiff cmyk": lambda: saved(inks(), "TIFF"),
    "tiff cmyk profile": lambda: saved(inks(), "TIFF", icc_profile=profiles.cmyk()),
    "webp lossless": lambda: saved(colour_photo(), "WEBP", lossless=True),
    "webp lossless alpha": lambda: saved(rgba(), "WEBP", lossless=True, exact=True),
    "bmp": lambda: saved(colour_photo(), "BMP"),
    "bmp grey": lambda: saved(grey_photo(), "BMP"),
    "ppm": lambda: saved(colour_photo(), "PPM"),
    "pgm 16": lambda: saved(deep(grey_photo()), "PPM"),
    "ppm 16": lambda: f"P6 {WIDTH} {HEIGHT} 65535\n".encode() + deep(colour_photo()).astype(">u2").tobytes(),
    "1 x 1": lambda: saved(colour_photo(1, 1)),
    "1 x 20,000": lambda: saved(np.resize(colour_photo(), (20_000, 1, 3))),
    "20,000 x 1, 16 bits": lambda: png_by_hand(np.resize(deep(colour_photo()), (1, 20_000, 3)), 16, 2),
}


def same_kind(a: SourceImage, b: SourceImage) -> None:
    assert (a.format, a.kind, a.depth, a.size, a.neutral, a.lossless) == (
        b.format,
        b.kind,
        b.depth,
        b.size,
        b.neutral,
        b.lossless,
    )
    assert (a.icc, a.exif, a.xmp, a.private, a.dropped) == (b.icc, b.exif, b.xmp, b.private, b.dropped)
    assert (a.alpha is None) == (b.alpha is None)
    if a.alpha is not None:
        np.testing.assert_array_equal(a.alpha, b.alpha)


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_lossless_photo_comes_back_sample_by_sample(name: str) -> None:
    source = open_image(LOSSLESS[name]())
    assert unchanged(source.pixels, source)
    encoded = encode_like(source.pixels, source)
    assert encoded.lost == ()
    again = open_image(encoded.data)
    same_kind(again, source)
    np.testing.assert_array_equal(again.samples, source.samples)
    assert torch.equal(again.pixels, source.pixels)
    assert encode_like(source.pixels.clone(), open_image(LOSSLESS[name]())).data == encoded.data  # no dates, no chance
    assert encode_like(again.pixels, again).data == encoded.data


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_change_arrives_in_the_file(name: str) -> None:
    """A brighter photo: within a level of what was asked for, and in greys without a tint."""
    source = open_image(LOSSLESS[name]())
    x = (source.pixels * 0.8 + 0.1).clamp(-1, 1)
    again = open_image(encode_like(x, source).data)
    same_kind(again, source)
    visible = torch.ones(x.shape[1:], dtype=torch.bool)
    if source.alpha is not None:
        visible = torch.from_numpy(source.alpha > 0)
        np.testing.assert_array_equal(again.samples[source.alpha == 0], source.samples[source.alpha == 0])
    wanted = x.mean(dim=0, keepdim=True).expand(3, -1, -1) if source.neutral else x
    error = (again.pixels - wanted).abs()[:, visible]
    if source.kind == "cmyk":  # the file's own separation is kept in part, and its inks mix in another way
        assert error.mean() < 1.5 / 127.5
    elif source.icc and not source.warnings:
        # Where sRGB clipped a colour of the profile, the change is made to the file's own colour instead.
        inside = (source.pixels.abs().amax(dim=0) < 0.99)[visible]
        assert error[:, inside].quantile(0.99) <= 1.6 / 127.5
        assert error[:, inside].max() <= 3.1 / 127.5
    else:
        assert error.max() <= 0.51 / (127.5 if source.depth == 8 else 32767.5)
    if source.neutral and source.kind == "rgb":
        assert again.neutral


def test_colours_that_srgb_lacks_are_not_clipped_where_little_changes() -> None:
    """Full red and green of Display P3 lie outside sRGB."""
    values = np.zeros((40, 40, 3), np.uint8)
    values[:20, :, 0], values[20:, :, 1] = 255, 255
    source = open_image(saved(values, icc_profile=profiles.display_p3()))
    x = source.pixels.clone()
    x[:, ::2] = (x[:, ::2] - 0.01).clamp(-1, 1)
    again = open_image(encode_like(x, source).data)
    np.testing.assert_array_equal(again.samples[1::2], values[1::2])
    assert np.abs(again.samples.astype(int) - values).max() <= 12
    white = open_image(encode_like(torch.ones_like(x), source).data)  # and nothing of it is left where all changes
    assert (white.samples == 255).all()


def test_a_photo_that_is_grey_in_three_channels_gets_no_tint() -> None:
    source = open_image(saved(np.repeat(grey_photo()[..., None], 3, axis=-1)))
    assert source.kind == "rgb"
    assert source.neutral
    tinted = source.pixels + torch.tensor([0.2, 0.0, -0.1])[:, None, None]
    written = open_image(encode_like(tinted, source).data)
    assert written.neutral
    assert written.kind == "rgb"
    assert not unchanged(tinted, source)
    assert unchanged(source.pixels + torch.tensor([0.1, 0.0, -0.1])[:, None, None], source)


def test_jpeg_of_a_phone() -> None:
    """EXIF with GPS, orientation, profile, XMP, captions, comment and resolution."""
    photo = photos.astronaut()[100:164, 150:246]
    caption = b"\xff\xed" + (2 + 20).to_bytes(2, "big") + b"Photoshop 3.0\0album1"
    data = saved(
        photo,
        "JPEG",
        quality=97,
        exif=b"Exif\0\0" + phone_exif(6),
        icc_profile=profiles.display_p3(),
        xmp=XMP,
        dpi=(300, 300),
        comment=b"scanned at home",
        extra=caption,
    )
    source = open_image(data)
    assert source.size == (64, 96)
    encoded = encode_like(source.pixels, source)
    assert encoded.lost == ()
    again = open_image(encoded.data)
    same_kind(again, source)
    assert again.dpi == (300, 300)
    assert {name for name, _ in again.private} == {"APP13", "COM"}
    with Image.open(io.BytesIO(encoded.data)) as image:
        exif = image.getexif()
        assert exif[274] == 1
        assert exif[0x010E] == "Grandmother's garden"
        assert exif.get_ifd(0x8825)[2] == (52.0, 31.0, 12.5)
        assert exif.get_ifd(0x8769)[0x9003] == "1987:06:05 04:03:02"
        assert image.info["icc_profile"] == profiles.display_p3()
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # 4:4:4
    assert np.abs(again.samples.astype(int) - source.samples).mean() < 2
    assert encode_like(source.pixels, source).data == encoded.data
    lossless = open_image(encode_like(source.pixels, source, "png").data)
    np.testing.assert_array_equal(lossless.samples, source.samples)
    assert (lossless.icc, lossless.exif, lossless.xmp) == (source.icc, source.exif, source.xmp)


@pytest.mark.parametrize("photo", ["cat", "retina", "coins", "china"])
def test_whole_photos_through_jpeg(photo: str) -> None:
    values = {
        "cat": photos.chelsea,
        "retina": photos.retina,
        "coins": photos.coins,
        "china": lambda: sklearn.datasets.load_sample_image("china.jpg"),
    }[photo]()
    source = open_image(saved(values[:400, :400], "JPEG", quality=90))
    again = open_image(encode_like(source.pixels, source).data)
    same_kind(again, source)
    assert np.abs(again.samples.astype(int) - source.samples).mean() < 1


def test_cmyk_jpeg() -> None:
    for icc in (None, profiles.cmyk()):
        source = open_image(saved(inks(), "JPEG", quality=98, icc_profile=icc))
        again = open_image(encode_like(source.pixels, source).data)
        same_kind(again, source)
        assert np.abs(again.samples.astype(int) - source.samples).mean() < 2


def test_lossy_webp_stays_lossy_unless_asked() -> None:
    source = open_image(
        saved(rgba(), "WEBP", quality=90, exif=phone_exif(), xmp=XMP, icc_profile=profiles.adobe_like())
    )
    encoded = encode_like(source.pixels, source)
    again = open_image(encoded.data)
    same_kind(again, source)
    assert np.abs(again.samples.astype(int) - source.samples)[source.alpha == 255].mean() < 3
    small = encode_like(source.pixels, source, quality=50).data
    assert len(small) < len(encoded.data)


@pytest.mark.skipif("AVIF" not in Image.registered_extensions().values(), reason="this Pillow has no AVIF")
def test_avif() -> None:
    source = open_image(saved(rgba(), "AVIF", quality=95, exif=phone_exif(), icc_profile=profiles.display_p3()))
    encoded = encode_like(source.pixels, source, provenance=NOTE)
    again = open_image(encoded.data)
    assert (encoded.lost, again.icc, again.exif) == ((), source.icc, source.exif)
    np.testing.assert_array_equal(again.alpha, source.alpha)
    assert np.abs(again.samples.astype(int) - source.samples)[source.alpha == 255].mean() < 3


def test_tiff_keeps_its_tags() -> None:
    extra = [
        (270, 2, 0, "A drawer of letters", True),
        (274, 3, 1, 8, True),
        (306, 2, 0, "1999:01:02 03:04:05", True),
        (33723, 7, 6, b"\x1c\x02x\0\x01a", True),
        (65000, 12, 2, (1.5, -2.5), True),
        (700, 1, len(XMP), XMP, True),
    ]
    for order in ("<", ">"):
        data = saved_tiff(
            deep(colour_photo()), photometric="rgb", byteorder=order, extratags=extra, resolution=(600, 400)
        )
        source = open_image(data)
        assert source.size == (HEIGHT, WIDTH)
        encoded = encode_like(source.pixels, source, provenance=NOTE)
        assert encoded.lost == ()
        with tifffile.TiffFile(io.BytesIO(encoded.data)) as file:
            page = file.pages[0]
            assert page.tags[270].value == "A drawer of letters"
            assert page.tags[274].value == 1
            assert page.tags[306].value == "1999:01:02 03:04:05"
            assert page.tags[65000].value == (1.5, -2.5)
            assert bytes(page.tags[33723].value) == b"\x1c\x02x\0\x01a"
            assert b"an album" in bytes(page.tags[700].value)
            assert b"flashray:provenance" in bytes(page.tags[700].value)
            assert page.tags[259].value == 8  # deflate
            np.testing.assert_array_equal(file.asarray(), source.samples)


@pytest.mark.parametrize("name", [name for name in LOSSLESS if name.startswith("tiff")])
def test_tiffs_are_read_by_others(name: str) -> None:
    source = open_image(LOSSLESS[name]())
    written = tifffile.imread(io.BytesIO(encode_like(source.pixels, source).data))
    samples = source.samples
    if source.alpha is not None:
        samples = np.concatenate([samples, source.alpha[..., None]], axis=-1)
    np.testing.assert_array_equal(written, samples.squeeze())


def test_big_endian_floats_are_read_by_pillow_and_from_deflated_files() -> None:
    values = (deep(grey_photo()) / 65_535).astype(np.float32)
    source = open_image(saved_tiff(values, byteorder=">", compression="zlib"))
    np.testing.assert_array_equal(source.samples.squeeze(), values)
    written = encode_like(source.pixels, source).data
    assert written[:2] == b"MM"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(written))), values)


def test_exif_moves_from_jpeg_to_tiff_and_png() -> None:
    source = open_image(saved(colour_photo(), "JPEG", exif=b"Exif\0\0" + phone_exif(3), quality=95))
    for format in ("tiff", "png", "webp"):
        with Image.open(io.BytesIO(encode_like(source.pixels, source, format).data)) as image:
            exif = image.getexif()
            assert exif[274] == 1
            assert exif[0x010F] == "Camera Works"
            assert exif.get_ifd(0x8825)[4] == (13.0, 24.0, 18.0)
            assert exif.get_ifd(0x8769)[0x9003] == "1987:06:05 04:03:02"


def test_png_texts_and_colour_hints_are_kept() -> None:
    own = [(b"gAMA", (45_455).to_bytes(4, "big")), (b"sRGB", b"\0"), (b"tEXt", b"Title\0A wall"), (b"tEXt", b"a\0b")]
    source = open_image(png_by_hand(colour_photo(), 8, 2, *own))
    assert source.warnings == ()
    again = open_image(encode_like(source.pixels, source, provenance=NOTE).data)
    assert again.private == source.private == tuple((kind.decode(), body) for kind, body in own)
    lost = encode_like(source.pixels, source, "jpeg").lost
    assert lost == ("what only PNG files hold (gAMA, sRGB, tEXt)",)
    linear = open_image(png_by_hand(colour_photo(), 8, 2, (b"gAMA", (100_000).to_bytes(4, "big"))))
    assert "gamma" in linear.warnings[0]


@pytest.mark.parametrize(
    ("name", "format", "lost"),
    [
        ("png 16 rgb", "jpeg", ["16 bits become 8"]),
        ("png 16 rgb", "webp", ["16 bits become 8"]),
        ("png 16 rgba", "tiff", []),
        ("png rgba", "jpeg", ["alpha (the image is laid on white)"]),
        ("png rgba", "webp", []),
        ("tiff float", "png", ["32-bit floating-point numbers become 16 bits"]),
        ("tiff float", "jpeg", ["32-bit floating-point numbers become 8 bits"]),
        ("tiff cmyk", "png", ["CMYK becomes RGB"]),
        ("tiff cmyk profile", "webp", ["CMYK becomes RGB", "the colour profile of the CMYK file"]),
        ("tiff cmyk profile", "jpeg", []),
        ("png grey profile", "webp", ["the colour profile of the grey file"]),
        ("png grey profile", "jpeg", []),
        ("bmp", "png", []),
    ],
)
def test_what_another_format_cannot_hold_is_named(name: str, format: OutputFormat, lost: list[str]) -> None:
    source = open_image(LOSSLESS[name]())
    encoded = encode_like(source.pixels, source, format)
    assert list(encoded.lost) == lost
    again = open_image(encoded.data)
    assert again.format == format.upper()
    visible = torch.ones(again.pixels.shape[1:], dtype=torch.bool)
    if source.alpha is not None and "jpeg" in format:
        visible = torch.from_numpy(source.alpha == source.alpha.max())
        hidden = torch.from_numpy(source.alpha == 0)
        assert again.pixels[:, hidden].mean() > 0.95  # white
    assert (again.pixels - source.pixels).abs()[:, visible].mean() < 3 / 127.5


def test_the_limits_of_formats() -> None:
    source = open_image(LOSSLESS["1 x 20,000"]())
    with pytest.raises(ImageError, match="WEBP holds at most 16,383 pixels a side"):
        encode_like(source.pixels, source, "webp")
    rgb = open_image(LOSSLESS["bmp"]())
    assert encode_like(rgb.pixels, rgb, provenance=NOTE).lost == ("the note of provenance",)
    long = png_by_hand(colour_photo(), 8, 2, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP + b" " * 70_000))
    source = open_image(long)
    assert encode_like(source.pixels, source, "jpeg").lost == ("XMP (longer than a JPEG segment)",)
    assert encode_like(source.pixels, source, "webp").lost == ()


@pytest.mark.parametrize("existing", [None, XMP])
@pytest.mark.parametrize("format", ["jpeg", "tiff", "webp"])
def test_provenance_is_added_once_and_destroys_nothing(format: OutputFormat, existing: bytes | None) -> None:
    data = saved(colour_photo(), "JPEG", **({"xmp": existing} if existing else {}), exif=b"Exif\0\0" + phone_exif())
    source = open_image(data)
    first = open_image(encode_like(source.pixels, source, format, provenance=NOTE).data)
    second = open_image(encode_like(first.pixels, first, provenance=NOTE | {"run": "2"}).data)
    for written, run in ((first, NOTE["run"]), (second, "2")):
        assert written.exif == source.exif
        assert written.xmp is not None
        found = [
            node.attrib["{urn:flashray:provenance:1}provenance"]
            for node in tree.fromstring(written.xmp).iter()
            if "{urn:flashray:provenance:1}provenance" in node.attrib
        ]
        assert [json.loads(text) for text in found] == [NOTE | {"run": run}]
        assert (existing is None) or b'dc:source="an album"' in written.xmp


@pytest.mark.parametrize(
    "merged",
    [
        b'<rdf:Description rdf:about="" %s xmp:Rating="5" flashray:provenance="{&quot;a&quot;: 1}" xmp:Label="x > y"/>',
        b"<rdf:Description rdf:about='' %s flashray:provenance='{}'><xmp:Label>x</xmp:Label></rdf:Description>",
        b'<rdf:Description rdf:about="" %s xmp:Rating="5"><flashray:provenance>{}</flashray:provenance>'
        b"<xmp:Label>x</xmp:Label></rdf:Description>",
    ],
)
def test_a_note_among_properties_of_others_is_replaced_and_they_stay(merged: bytes) -> None:
    """Other programs merge the elements of one photo into one."""
    names = b'xmlns:xmp="http://ns.adobe.com/xap/1.0/"\n xmlns:flashray="urn:flashray:provenance:1"'
    end = XMP.index(b"</rdf:RDF>")
    noted = XMP[:end] + merged % names + XMP[end:]
    source = open_image(saved(colour_photo(), "JPEG", xmp=noted))
    for _ in range(2):
        source = open_image(encode_like(source.pixels, source, provenance=NOTE).data)
    assert source.xmp is not None
    nodes = list(tree.fromstring(source.xmp).iter())
    name = "{urn:flashray:provenance:1}provenance"
    assert [json.loads(node.attrib[name]) for node in nodes if name in node.attrib] == [NOTE]
    assert name not in [node.tag for node in nodes]
    assert b'dc:source="an album"' in source.xmp
    for kept in (b'xmp:Rating="5"', b'xmp:Label="x > y"', b"<xmp:Label>x</xmp:Label>"):
        assert source.xmp.count(kept) == merged.count(kept)


def test_provenance_in_png_is_a_text_chunk() -> None:
    source = open_image(saved(colour_photo()))
    first = encode_like(source.pixels, source, provenance=NOTE).data
    with Image.open(io.BytesIO(first)) as image:
        image.load()
        assert json.loads(image.text["flashray"]) == NOTE
    again = open_image(first)
    assert encode_like(again.pixels, again, provenance=NOTE).data == first  # not a second one
    assert encode_like(source.pixels, source, provenance=dict(reversed(NOTE.items()))).data == first


def test_a_note_too_long_for_a_segment_leaves_the_photos_own_xmp() -> None:
    own = XMP.replace(b"an album", b"x" * 65_000)
    source = open_image(saved(colour_photo(), "JPEG", xmp=own))
    encoded = encode_like(source.pixels, source, provenance=NOTE)
    assert encoded.lost == ("the note of provenance",)
    assert open_image(encoded.data).xmp == own
    noted = encode_like(source.pixels, source, "tiff", provenance=NOTE)
    assert noted.lost == ()


def test_broken_xmp_is_not_touched() -> None:
    source = open_image(saved(colour_photo(), "JPEG", xmp=b"<not closed"))
    encoded = encode_like(source.pixels, source, provenance=NOTE)
    assert encoded.lost == ("the note of provenance",)
    assert open_image(encoded.data).xmp == b"<not closed"


@pytest.mark.parametrize("name", ["png rgb", "png 16 rgb", "tiff float", "tiff cmyk", "png rgba", "png grey"])
def test_unchanged_means_less_than_half_a_level(name: str) -> None:
    source = open_image(LOSSLESS[name]())
    half = 1 / 255 if source.depth == 8 else 1 / 65_535
    assert unchanged(source.pixels + 0.9 * half, source)
    for change in (1.1 * half, torch.nan):
        x = source.pixels.clone()
        x[:, 3, -1] += change if x[0, 3, -1] < 0 else -change
        assert not unchanged(x, source)
    assert not unchanged(source.pixels[:, 1:], source)
    if source.alpha is not None:
        x = source.pixels.clone()
        x[:, 3, 0] = 0.123
        assert source.alpha[3, 0] == 0
        assert unchanged(x, source)


def test_senseless_arguments() -> None:
    source = open_image(saved(colour_photo()))
    bad: list[tuple[dict[str, Any], str]] = [
        ({"x_CHW": source.pixels[:, 1:]}, "shape"),
        ({"quality": 0}, "quality"),
        ({"format": "gif"}, "format"),
    ]
    for arguments, reason in bad:
        with pytest.raises(ValueError, match=reason):
            encode_like(**({"x_CHW": source.pixels, "source": source} | arguments))
    x = source.pixels.clone()
    x[0, 0, 0] = torch.nan
    with pytest.raises(ImageError, match="not finite"):
        encode_like(x, source)
    beyond = open_image(encode_like(source.pixels * 9, source).data)
    assert beyond.samples.max() == 255


@pytest.mark.parametrize(
    ("key", "format", "name"),
    [
        ("a/b.jpg", "same", "a/b.jpg"),
        ("x.bmp", "same", "x.bmp"),
        ("a.jpg", "png", "a.jpg.png"),
        ("a.png", "png", "a.png"),
        ("A.PNG", "png", "A.PNG"),
        ("a.jpeg", "jpeg", "a.jpeg"),
        ("a.tif", "tiff", "a.tif"),
        ("a.webp", "tiff", "a.webp.tif"),
        ("b.ppm", "webp", "b.ppm.webp"),
        ("no suffix", "jpeg", "no suffix.jpg"),
    ],
)
def test_names_of_outputs(key: str, format: OutputFormat, name: str) -> None:
    assert output_name(key, format) == name


def test_names_of_unknown_formats() -> None:
    with pytest.raises(ValueError, match="format"):
        output_name("a", "gif")  # type: ignore[arg-type]
