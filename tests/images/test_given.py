"""What a Python caller may give as an image."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flashray.images import as_image, as_list, open_image


def test_a_picture_of_16_bits_is_what_its_file_is(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    path = tmp_path / "grey.png"
    Image.fromarray(levels).save(path)
    picture = Image.open(path)
    assert picture.mode.startswith("I;16")
    torch.testing.assert_close(as_image(picture), as_image(path))


def test_a_picture_of_12_bits_is_what_its_file_is() -> None:
    levels = np.linspace(0, 4095, 6 * 8).astype(np.uint16).reshape(6, 8)
    first, second = levels[:, ::2], levels[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()
    tags = {256: 8, 257: 6, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 6, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + packed
    expected = torch.from_numpy(levels / 4095 * 2 - 1).float().expand(3, -1, -1)
    torch.testing.assert_close(as_image(Image.open(io.BytesIO(file))), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(open_image(file).pixels, expected, rtol=0, atol=2e-5)


def test_grey_that_is_multiplied_by_its_alpha_is_divided_by_it() -> None:
    grey = Image.fromarray(np.arange(0, 240, 5, np.uint8).reshape(6, 8))
    opaque = Image.merge("LA", (grey, Image.new("L", (8, 6), 255)))
    torch.testing.assert_close(as_image(opaque.convert("La")), as_image(grey))
    half = Image.merge("LA", (grey, Image.new("L", (8, 6), 128)))
    torch.testing.assert_close(as_image(half.convert("La")), as_image(grey), rtol=0, atol=2 / 127.5)


def test_a_picture_is_turned_upright_as_its_file_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    assert as_image(path).shape == (3, 40, 24)
    torch.testing.assert_close(as_image(Image.open(path)), as_image(path))


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(tmp_path / "x.png")
    for path in ("~/x.png", Path("~/x.png")):
        torch.testing.assert_close(as_image(path), as_image(tmp_path / "x.png"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Image.new("F", (8, 8)), "mode F does not say"),
        (Image.new("I", (8, 8)), "mode I does not say"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
        (torch.zeros(3, 8, 0), "no pixels"),
        (Image.new("RGB", (0, 5)), "shape .5, 0. has no pixels"),
        (Image.new("L", (5, 0)), "no pixels"),
        (None, "not a NoneType"),
        (3, "not a int"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, words: str) -> None:
    (one,) = as_list(given)
    with pytest.raises(ValueError, match=words):
        as_image(one)
