"""Measurements: the same y from every process, whoever shares the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flashray.errors import ImageError
from flashray.images import decode_image, encode_png
from flashray.pipeline.measurement import Frame, Measurer, load_image, load_images, pack_pixels, unpack_pixels
from flashray.pipeline.run_config import DegradationConfig, ReconstructConfig

SIZE = 32


def measurer(measurement: str = "simulated", **degradation: Any) -> Measurer:
    settings = {"settings": {"std": [0.5, 2.0]}} | degradation
    return Measurer(
        ReconstructConfig("/a", "/o", measurement=measurement, degradation=DegradationConfig(**settings))  # type: ignore[arg-type]
    )


def crops(photo: torch.Tensor, n: int = 4) -> dict[str, torch.Tensor]:
    return {f"crop {i}": photo[:, 90:122, 50 * i : 50 * i + SIZE] for i in range(n)}


def test_eight_bit_images_travel_exactly(photo: torch.Tensor) -> None:
    x = decode_image(encode_png(photo[:, :SIZE, :SIZE]))
    assert torch.equal(unpack_pixels(pack_pixels(x), SIZE), x)


def test_any_image_travels_within_16_bits() -> None:
    x = torch.rand(3, SIZE, SIZE) * 2 - 1
    assert (unpack_pixels(pack_pixels(x), SIZE) - x).abs().max() <= 1 / 65535 + 1e-6


def test_loading_says_what_is_wrong(tmp_path: Path, photo: torch.Tensor) -> None:
    good = encode_png(photo[:, :64, :48])
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    (tmp_path / "folder.png").mkdir()
    names = ["good", "empty", "cut", "tiny", "folder", "absent"]
    loaded = load_images([str(tmp_path / f"{name}.png") for name in names], Frame(SIZE, "resize"))
    assert loaded[0].error is None
    assert (loaded[0].width, loaded[0].height) == (48, 64)
    assert loaded[0].pixels is not None
    assert len(loaded[0].pixels) == 2 * 3 * SIZE * SIZE
    for name, one in zip(names[1:], loaded[1:], strict=True):
        assert one.error, name
        assert one.pixels is None
    assert "limits" in str(loaded[3].error)
    assert "no such file" in str(loaded[5].error)
    assert "not 32 x 32" in str(load_image(str(tmp_path / "good.png"), Frame(SIZE, "error")).error)


def test_simulated_measurements_depend_on_key_and_seed_alone(photo: torch.Tensor) -> None:
    simulate = measurer()
    photos = [simulate.photo(key, x, None, None) for key, x in crops(photo).items()]
    together = simulate.measure(photos)
    for i, one in enumerate(photos):
        alone = simulate.measure([one])
        assert torch.equal(alone.y_BCHW[0], together.y_BCHW[i])
        assert alone.seed_B[0] == together.seed_B[i]
    assert len(set(together.parameters["blur_std"].tolist())) == len(photos)
    residual = together.y_BCHW - simulate.degradation.bind(together.parameters, (SIZE, SIZE)).A(
        torch.stack([one.x for one in photos])
    )
    assert residual.std().item() / 2 == pytest.approx(0.05, rel=0.05)


def test_what_the_plan_keeps_makes_the_same_measurement(photo: torch.Tensor) -> None:
    simulate = measurer(noise_std=[0.01, 0.2])
    photos = [simulate.photo(key, x, None, None) for key, x in crops(photo).items()]
    first = simulate.measure(photos)
    kept = [simulate.kept(one) for one in photos]
    again = [simulate.photo(p.key, p.x, given, p.noise_std) for p, given in zip(photos, kept, strict=True)]
    assert torch.equal(simulate.measure(again).y_BCHW, first.y_BCHW)
    assert len({p.noise_std for p in photos}) == len(photos)
    assert all(0.01 <= p.noise_std <= 0.2 for p in photos)


def test_a_manifest_overrides_the_draw(photo: torch.Tensor) -> None:
    simulate = measurer()
    x = crops(photo)["crop 0"]
    measured = simulate.measure([simulate.photo("crop 0", x, json.dumps({"blur_std": 1.25}), 0.125)])
    assert measured.parameters["blur_std"].tolist() == [1.25]
    assert measured.noise_std_B.tolist() == [0.125]


def test_observed_measurements_are_the_images(photo: torch.Tensor) -> None:
    observe = measurer("observed", settings={"std": [1.0, 1.0]})
    x = crops(photo)["crop 1"]
    measured = observe.measure([observe.photo("crop 1", x, None, None)])
    assert torch.equal(measured.y_BCHW[0], x)
    assert measured.parameters["blur_std"].tolist() == [1.0]


def test_what_nobody_tells_is_an_error_of_the_image(photo: torch.Tensor) -> None:
    x = crops(photo)["crop 1"]
    with pytest.raises(ImageError, match="blur_std"):
        measurer("observed").photo("crop 1", x, None, None)
    with pytest.raises(ImageError, match="noise_std"):
        measurer("observed", settings={"std": [1.0, 1.0]}, noise_std=[0.0, 0.1]).photo("crop 1", x, None, None)
    with pytest.raises(ImageError, match="positive"):
        measurer().photo("crop 1", x, json.dumps({"blur_std": 0.0}), None)
