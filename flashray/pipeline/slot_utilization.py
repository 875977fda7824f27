"""The use of slots by in-flight batching: how many steps each slot of a unit takes, computed from the start steps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flashray.pipeline.units import Floats, Integers


def slot_steps(nfe: npt.NDArray[np.integer], first: Integers, slots: int) -> Integers:
    """The number of steps that each slot of each unit is filled.

    The engine gives the next image to the slot that is free first, and its slots step together: list scheduling.

    Args:
        nfe: [n] start steps, in their units' order.
        first: [units] indices in `nfe` at which the units begin.
        slots: images in flight.

    Returns:
        [units, slots], each row descending: `[u, j]` of the unit's batched steps have more than j slots filled.
    """
    images = np.diff(np.append(first, len(nfe)))
    steps = np.zeros((len(first), slots), np.int64)
    for place in range(images.max(initial=0)):
        units = np.flatnonzero(images > place)
        steps[units, steps[units].argmin(axis=1)] += nfe[first[units] + place]
    return -np.sort(-steps, axis=1)


def slot_utilization(steps_US: Integers) -> float:
    """Slot-steps that update an image over all slot-steps; 1 if there are none."""
    held = int(steps_US[:, 0].sum()) * steps_US.shape[1]
    return float(steps_US.sum() / held) if held else 1.0


def batch_seconds(steps_US: Integers, seconds_S: Floats) -> Floats:
    """[units] seconds, where a batched step with j of the slots filled takes `seconds_S[j - 1]`."""
    return steps_US @ np.diff(seconds_S, prepend=0.0)
