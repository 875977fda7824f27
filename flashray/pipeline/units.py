"""Units: fixed lists of images with similar start steps and about equal cost, the grain of dispatch and resume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
ALONE = 1  # cost of an image besides its NFE (encoder pass, decoding, writing), in NFE
MOST = 4  # a unit holds at most about this many times the mean number of images, even if they are very easy
TAPER = 8  # the last units are up to this many times smaller than the others
# The size of units where the configuration does not give it:
PER_ACTOR = 16  # units of full share for each of several actors
ALL_ALONE = 4  # units of full share for a single actor
FILLINGS = 4  # times that a unit fills the slots, unless some actor would get no unit
LARGEST = 128  # images of a mean unit at most, because a unit is one row
DEAREST = 32_000  # NFE of a unit at most, because this is lost with an actor or by an interruption


def choose_unit_images(nfe: Integers, actors: int, slots: int) -> int:
    """The mean number of images of a unit that suits an archive and a pool, a multiple of the number of slots.

    Large units lose little time to slots that idle while the last images of a unit finish. Small units lose little to
    actors that idle while the last units finish, and to interruptions. `pack` makes the last units smaller, so large
    units are preferred.
    """
    fair = len(nfe) / actors
    dearest = DEAREST / max(nfe.mean(), 1.0) if len(nfe) else LARGEST
    wished = max(fair / (PER_ACTOR if actors > 1 else ALL_ALONE), FILLINGS * slots)
    wished = min(wished, fair, dearest, LARGEST)
    return slots * max(1, round(wished / slots))


def image_costs(nfe: Integers) -> Floats:
    """The cost of each image for packing, in NFE. The lower limit bounds the size of units of very easy images."""
    cost = nfe.astype(np.float64) + ALONE
    return np.maximum(cost, cost.mean() / MOST) if len(cost) else cost


def pack(
    start_step: Integers, nfe: Integers, unit_images: int, slots: int = 1, actors: int = 1
) -> tuple[Integers, Integers]:
    """Pack images into units: sorted by start step, hardest first, and cut where the cost reaches an equal share.

    Units are cut at multiples of the number of slots, so that a unit of similar images ends without idle slots. When
    fewer than two units of full share are left for each of several actors, a unit takes a fixed part of the rest, down
    to 1/`TAPER` of a share, so that the actors end at about the same time (guided self-scheduling, Polychronopoulos &
    Kuck 1987). Vectorised: ten million images take seconds and a few arrays.

    Args:
        start_step, nfe: [n], in the order of the listing; images of equal start step keep that order.
        unit_images: the mean number of images of a unit of full share.
        slots: images that an actor has in flight.
        actors: number of actors that will share the work.

    Returns:
        (order [n], unit [n]): `order` holds the images' indices in their units' order, and `unit[i]`, ascending from 0
        without gaps, is the unit of image `order[i]`. The same input gives the same units.
    """
    order = hardest_first(start_step)
    if not len(order):
        return order, order.copy()
    slotfuls = np.arange(0, len(order), slots)
    cost = np.add.reduceat(image_costs(nfe)[order], slotfuls)
    share = cost.sum() / -(-len(order) // unit_images)
    left = cost[::-1].cumsum()[::-1] - cost / 2  # a slotful belongs to the unit that contains its middle
    cut = np.floor(_units_in(cost.sum(), share, actors) - _units_in(left, share, actors))
    unit = np.cumsum(np.diff(cut, prepend=cut[0]) > 0)
    return order, np.repeat(unit, np.diff(np.append(slotfuls, len(order))))


@dataclass(frozen=True)
class Packing:
    """The packing of a run.

    Attributes:
        unit_images: the mean number of images of a unit of full share; None chooses.
        slots, actors: the pool's.
    """

    unit_images: int | None
    slots: int
    actors: int = 1

    def __call__(self, start_step: Integers) -> tuple[Integers, Integers]:
        """`pack`, of start steps that are the NFE too."""
        size = self.unit_images or choose_unit_images(start_step, self.actors, self.slots)
        return pack(start_step, start_step, size, self.slots, self.actors)


def hardest_first(start_step: Integers) -> Integers:
    """The order of descending start step; stable. Sixteen bits are enough for every chain, and sort by radix."""
    most = start_step.max(initial=0)
    return np.argsort((most - start_step).astype(np.min_scalar_type(most)), kind="stable")


def _units_in(left: Floats | np.float64, share: np.float64, actors: int) -> Floats:
    """The number of units in the work that is left: the integral of 1/size from 0 to `left`.

    size(w) = w/(2 actors), between share/TAPER and share; for one actor it is always `share`.
    """
    taper = 2 * actors if actors > 1 else 0
    whole, tail = taper * share, taper * share / TAPER
    in_tail = np.minimum(left, tail) * TAPER / share
    between = taper * np.log(np.clip(left, tail, whole) / tail) if taper else 0.0
    return in_tail + between + np.maximum(left - whole, 0) / share


def unit_ids(attempt: int, unit: Integers) -> pa.Array:
    """`AA-NNNNNNNN`: the attempt (0, then one more for each retry of failed images) and the unit's number."""
    numbers = pa.array(np.arange(unit.max(initial=-1) + 1)).cast(pa.string())
    ids = pc.binary_join_element_wise(f"{attempt:02d}", pc.utf8_lpad(numbers, 8, "0"), "-")
    return ids.take(pa.array(unit))


def unit_starts(ids: pa.Array | pa.ChunkedArray) -> Integers:
    """Where each unit's rows begin, in rows that hold each unit's together."""
    if not len(ids):
        return np.array([], np.int64)
    changes = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1))
    return np.append(0, 1 + np.flatnonzero(changes.to_numpy(zero_copy_only=False)))


def index(plan: pa.Table) -> pa.Table:
    """One row a unit, in the order of dispatch (most expensive first): unit_id, first row in the plan, images, cost.

    The cost is in NFE. `plan` holds rows of units in their order, each unit's rows together. No Python object is made
    for an image.
    """
    ids = plan["unit_id"].combine_chunks() if len(plan) else pa.array([], pa.string())
    first = unit_starts(ids)
    images = np.diff(np.append(first, len(plan)))
    cost = unit_costs(plan["nfe"].to_numpy(), first)
    units = pa.table({"unit_id": ids.take(pa.array(first)), "first": first, "images": images, "cost": cost})
    return units.take(pa.array(dearest_first(cost)))


def unit_costs(nfe: npt.NDArray[np.integer], first: Integers) -> Integers:
    """Each unit's cost in NFE, from images in their units' order and the indices at which the units begin."""
    total = np.add.reduceat(nfe, first, dtype=np.int64) if len(first) else np.array([], np.int64)
    return total + ALONE * np.diff(np.append(first, len(nfe)))


def dearest_first(cost: Integers) -> Integers:
    """The order of dispatch: longest processing time first (Graham 1969); equal ones keep their numbers' order."""
    return np.argsort(-cost, kind="stable")


def gather(plan: pa.Table, units: pa.Table, columns: list[str]) -> pa.Table:
    """These units of `index(plan)` with each of `columns` as a list; copies their rows only."""
    first, images = (units[name].to_numpy() for name in ("first", "images"))
    offsets = np.append(0, np.cumsum(images))
    rows = plan.select(columns).take(pa.array(np.repeat(first - offsets[:-1], images) + np.arange(offsets[-1])))
    for name in columns:
        values = rows[name].combine_chunks() if len(rows) else pa.array([], plan.schema.field(name).type)
        units = units.append_column(name, pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values))
    return units.drop_columns("first")
