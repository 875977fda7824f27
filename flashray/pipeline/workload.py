"""What images ask of a solver: where each of their windows starts, and how many pixels they have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
STARTS = pa.map_(pa.int32(), pa.int32())  # start step → number of windows that start there, latest step first


@dataclass(frozen=True)
class Workload:
    """The histograms of n images' window starts, one after the other, and their sizes."""

    offsets: Integers  # [n + 1], image i's entries are those from offsets[i] to offsets[i + 1]; at least one each
    steps: Integers  # [m] start steps, those of an image descending
    counts: Integers  # [m] numbers of windows that start there
    pixels: Integers  # [n] of the padded images, as the networks see them
    touched: Booleans  # [n] false for an image of which nothing is decoded

    @classmethod
    def of_windows(cls, steps: Integers, pixels: int = 0) -> Workload:
        """Images of one window each, of so many pixels."""
        steps = np.asarray(steps, np.int64)
        touched = np.ones(len(steps), bool)
        return cls(np.arange(len(steps) + 1), steps, np.ones_like(steps), np.full_like(steps, pixels), touched)

    @classmethod
    def of_starts(
        cls, starts: Integers, windows: Integers, pixels: Integers, touched: Booleans | None = None
    ) -> Workload:
        """Images of these windows: `starts` holds all windows' start steps, image by image; all touched by default."""
        if not len(windows):
            return cls.of_windows(starts)
        image = np.repeat(np.arange(len(windows)), windows)
        base = int(starts.max(initial=0)) + 1
        found, counts = np.unique(image * base + (base - 1 - starts), return_counts=True)
        offsets = np.searchsorted(found, np.arange(len(windows) + 1) * base)
        touched = np.ones(len(windows), bool) if touched is None else touched
        return cls(offsets, base - 1 - found % base, counts, pixels, touched)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def start_step(self) -> Integers:
        """[n] the latest start: the number of updates."""
        return self.steps[self.offsets[:-1]]

    @cached_property
    def windows(self) -> Integers:
        """[n] K."""
        return np.add.reduceat(self.counts, self.offsets[:-1]) if len(self) else self.counts

    @cached_property
    def evaluations(self) -> Integers:
        """[n] Σ_k s_k: the denoiser's evaluations of windows."""
        return np.add.reduceat(self.steps * self.counts, self.offsets[:-1]) if len(self) else self.counts

    @property
    def mean_nfe(self) -> float:
        """Σ_k s_k / K, the mean over the images."""
        return float((self.evaluations / self.windows).mean())

    def take(self, order: Integers) -> Workload:
        """The images at these places, in this order."""
        lengths = np.diff(self.offsets)[order]
        offsets = np.append(0, np.cumsum(lengths))
        rows = np.repeat(self.offsets[:-1][order] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Workload(offsets, self.steps[rows], self.counts[rows], self.pixels[order], self.touched[order])

    def as_maps(self) -> pa.Array:
        """[n] of `STARTS`."""
        steps, counts = pa.array(self.steps, pa.int32()), pa.array(self.counts, pa.int32())
        return pa.MapArray.from_arrays(pa.array(self.offsets, pa.int32()), steps, counts)


def workload_of(plan: pa.Table) -> Workload:
    """The workload of a plan's rows that belong to units."""
    maps = pa.concat_arrays(plan["starts"].chunks) if len(plan) else pa.array([], STARTS)
    first = maps.offsets[0].as_py() if len(plan) else 0
    offsets = maps.offsets.to_numpy().astype(np.int64) - first
    entries = slice(first, first + int(offsets[-1]))
    steps, counts = (values.to_numpy()[entries].astype(np.int64) for values in (maps.keys, maps.items))
    offsets = offsets if len(plan) else np.zeros(1, np.int64)
    return Workload(offsets, steps, counts, plan["pixels"].to_numpy(), touched_of(plan))


def touched_of(rows: pa.Table) -> Booleans:
    """Of rows of a plan; true where it is not known."""
    if "touched" not in rows.column_names:
        return np.ones(len(rows), bool)
    touched: Booleans = pc.fill_null(rows["touched"], True).to_numpy().astype(bool)
    return touched
