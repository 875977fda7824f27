"""The archive that demo and tests try things on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks.sample_photos import sample_crops, whole_photos, write_sample_archive
from flashray.degradations import make_degradation
from flashray.errors import ConfigError
from flashray.images import open_image


def test_crops_are_different_photos_of_the_asked_size():
    crops = sample_crops(20, size=64)
    assert len(crops) == 20
    assert {name.split("-")[0] for name in crops} >= {"astronaut", "china", "flower"}
    stacked = torch.stack(list(crops.values()))
    assert stacked.shape == (20, 3, 64, 64)
    assert stacked.min() >= -1
    assert stacked.max() <= 1
    assert len({x.sum().item() for x in stacked}) == 20


def test_whole_photos_are_twelve_at_their_own_sizes():
    photos = whole_photos()
    assert len(photos) == 12
    assert photos["astronaut"].shape == (3, 512, 512)
    assert {min(x.shape[1:]) >= 300 for x in photos.values()} == {True}
    assert len({x.mean().item() for x in photos.values()}) == 12


@pytest.mark.parametrize("count", [0, 10_000])
def test_impossible_counts_are_refused(count: int):
    with pytest.raises(ConfigError, match="sample crops"):
        sample_crops(count)


def test_archive_holds_pairs_and_a_manifest_and_is_the_same_each_time(tmp_path: Path):
    degradation = make_degradation("gaussian_blur")
    for name in ("one", "two"):
        write_sample_archive(tmp_path / name, 6, degradation, noise_std=0.05)
    one, two = tmp_path / "one", tmp_path / "two"
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 13
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    with (one / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["key"] for row in rows} == {path.name for path in (one / "clean").iterdir()}
    for row in rows:
        assert 0.3 <= float(row["blur_std"]) <= 3.0
        clean, degraded = (open_image((one / part / row["key"]).read_bytes()).pixels for part in ("clean", "degraded"))
        assert 0.02 < (clean - degraded).std() < 1
