"""The photos that an experiment is reported on, and those that it calibrates on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.sample_photos import sample_crops
from flashray.errors import ConfigError, ImageError
from flashray.training.photo_windows import list_photos, load_fitted


@dataclass(frozen=True)
class Photos:
    """Clean photos [N, 3, size, size] in [-1, 1], their keys, and hashes of what was read."""

    keys: list[str]
    hashes: list[str]
    x_NCHW: Tensor

    def first(self, count: int) -> Photos:
        return Photos(self.keys[:count], self.hashes[:count], self.x_NCHW[:count])


Bundle = dict[tuple[str, int], Photos]  # (archive, sample or calibration; side in pixels) → photos


def archive_photos(folder: str, count: int, size: int, offset: int = 0, stride: int = 1) -> Photos:
    """At most `count` photos of a folder: every stride-th of the sorted ones from `offset` on.

    Raises:
        ConfigError: if there is none, or one cannot be read.
    """
    return _read(folder, _reported(folder, count, offset, stride), size)


def calibration_photos(folder: str, reported: int, count: int, size: int, offset: int = 0, stride: int = 1) -> Photos:
    """Photos of the folder that are not among the `reported` ones, evenly chosen; ConfigError if none is left."""
    used = set(_reported(folder, reported, offset, stride))
    rest = [path for path in list_photos(folder) if path not in used]
    if not rest:
        raise ConfigError(
            f"photos {folder}: all {len(used)} are reported, and none is left to calibrate the cheap severities on; "
            "give fewer images or a stride"
        )
    chosen = torch.linspace(0, len(rest) - 1, min(count, len(rest))).long().tolist()
    return _read(folder, [rest[n] for n in chosen], size)


def sample_photos(count: int, size: int) -> Photos:
    """Crops of the photos inside scikit-image and scikit-learn, at most as many as there are."""
    crops = sample_crops(min(count, 63), size)
    hashes = [hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in crops.values()]
    return Photos(list(crops), hashes, torch.stack(list(crops.values())))


def _reported(folder: str, count: int, offset: int, stride: int) -> list[Path]:
    paths = list_photos(folder)[offset::stride][:count]
    if not paths:
        raise ConfigError(f"photos {folder}: none is left after offset {offset}")
    return paths


def _read(folder: str, paths: Sequence[Path], size: int) -> Photos:
    x, hashes = [], []
    for path in paths:
        try:
            x.append(load_fitted([path], size))
        except ImageError as error:
            raise ConfigError(f"photos: {path}: {error}") from error
        hashes.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return Photos([path.relative_to(folder).as_posix() for path in paths], hashes, torch.cat(x))
