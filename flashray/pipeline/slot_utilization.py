"""The use of slots by in-flight batching, computed from the windows' start steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flashray.pipeline.workload import Floats, Integers, Workload


def in_flight(load: Workload, first: Integers, slots: int, seconds_S: Floats) -> tuple[Floats, float]:
    """([units] seconds of the denoiser's batches, the share of slots that these fill).

    Images whose windows fit the slots share batches, each window in a slot of its own. One with more windows is solved
    alone: at every update its active windows go in batches of `slots`, the last of which is not full. `load` has the
    images in their units' order, `first` [units] the indices at which units begin, and `seconds_S` the seconds of a
    batch of 1 … `slots` windows.
    """
    small = load.windows <= slots
    steps_US = slot_steps(*_windows_in_slots(load, first, small), slots)
    useful, held = int(steps_US.sum()), int(steps_US[:, 0].sum()) * slots
    seconds = batch_seconds(steps_US, seconds_S)
    if not small.all():
        of_image = np.repeat(np.arange(len(load)), np.diff(load.offsets))
        entry = ~small[of_image]
        unit = np.searchsorted(first, of_image[entry], side="right") - 1
        # the updates during which so many windows are active: from one start down to the image's next
        updates = (load.steps - np.append(load.steps[1:], 0) * (of_image == np.append(of_image[1:], -1)))[entry]
        counted = np.cumsum(load.counts)
        before = np.append(0, counted)[load.offsets[:-1]]
        active = (counted - before[of_image])[entry]
        batches, rest = np.divmod(active, slots)
        each = batches * seconds_S[-1] + np.append(0.0, seconds_S)[rest]
        seconds = seconds + np.bincount(unit, updates * each, minlength=len(first))
        useful += int((updates * active).sum())
        held += int((updates * (batches + (rest > 0))).sum()) * slots
    return seconds, useful / held if held else 1.0


def _windows_in_slots(load: Workload, first: Integers, small: npt.NDArray[np.bool_]) -> tuple[Integers, Integers]:
    """(start steps of all windows of the small images, the index at which each unit's begin)."""
    counts = np.where(np.repeat(small, np.diff(load.offsets)), load.counts, 0)
    begins = np.append(0, np.cumsum(counts))[load.offsets[first]] if len(first) else first
    return np.repeat(load.steps, counts), begins


def slot_steps(nfe: npt.NDArray[np.integer], first: Integers, slots: int) -> Integers:
    """[units, slots] steps that each slot of each unit is filled, each row descending.

    `[u, j]` of the unit's batched steps have more than j slots filled. The engine gives the next image to the slot that
    is free first, and its slots step together: list scheduling. `nfe` [n] has the start steps in their units' order,
    `first` [units] the indices in it at which units begin; `slots` is the number of images in flight.
    """
    images = np.diff(np.append(first, len(nfe)))  # none in a unit of large photos
    steps = np.zeros((len(first), slots), np.int64)
    for place in range(images.max(initial=0)):
        units = np.flatnonzero(images > place)
        steps[units, steps[units].argmin(axis=1)] += nfe[first[units] + place]
    return -np.sort(-steps, axis=1)


def batch_seconds(steps_US: Integers, seconds_S: Floats) -> Floats:
    """[units] seconds, where a batched step with j of the slots filled takes `seconds_S[j - 1]`."""
    return steps_US @ np.diff(seconds_S, prepend=0.0)
