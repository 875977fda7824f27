"""What a Python caller may give as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flashray.images import as_image, as_list


def test_a_picture_of_16_bits_is_what_its_file_is(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    path = tmp_path / "grey.png"
    Image.fromarray(levels).save(path)
    picture = Image.open(path)
    assert picture.mode.startswith("I;16")
    torch.testing.assert_close(as_image(picture), as_image(path))


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
