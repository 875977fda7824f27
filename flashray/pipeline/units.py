"""Units: fixed lists of images of like size and cost, the grain of dispatch and resume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flashray.pipeline.workload import Floats, Integers, Workload, workload_of

ALONE = 1  # cost of a window besides its evaluations (encoder pass, decoding, writing), in evaluations
MOST = 4  # a unit holds at most about this many times the mean number of images, even if they are very easy
TAPER = 8  # the last units are up to this many times smaller than the others
PIXELS = 16 * 2**20  # of a unit, because its images are in memory together; a larger photo is a unit alone
# The size of units where the configuration does not give it:
PER_ACTOR = 16  # units of full share for each of several actors
ALL_ALONE = 4  # units of full share for a single actor
FILLINGS = 4  # times that a unit fills the slots, unless some actor would get no unit
LARGEST = 128  # images of a mean unit at most, because a unit is one row
DEAREST = 32_000  # evaluations of a unit at most, because this is lost with an actor or by an interruption


def choose_unit_images(load: Workload, actors: int, slots: int) -> int:
    """The mean number of images of a unit that suits an archive and a pool; of one-window images, whole slotfuls.

    Large units lose little time to slots that idle while the last images of a unit finish. Small units lose little to
    actors that idle while the last units finish, and to interruptions. `pack` makes the last units smaller, so large
    units are preferred.
    """
    evaluations, fair = load.evaluations, len(load) / actors
    slotful = max(1, round(slots / load.windows.mean())) if len(load) else slots  # images that fill the slots
    dearest = DEAREST / max(evaluations.mean(), 1.0) if len(load) else LARGEST
    wished = max(fair / (PER_ACTOR if actors > 1 else ALL_ALONE), FILLINGS * slotful)
    wished = min(wished, fair, dearest, LARGEST)
    return slotful * max(1, round(wished / slotful))


def image_costs(load: Workload) -> Floats:
    """The cost of each image for packing, in evaluations. The lower limit bounds the size of units of easy images."""
    cost = (load.evaluations + ALONE * load.windows).astype(np.float64)
    return np.maximum(cost, cost.mean() / MOST) if len(cost) else cost


def pack(
    load: Workload, unit_images: int, slots: int = 1, actors: int = 1, samples: int = 1
) -> tuple[Integers, Integers]:
    """Pack images into units: most windows first, then hardest first, cut where the cost reaches an equal share.

    Units are cut at multiples of the number of slots, so that a unit of similar images ends without idle slots. When
    fewer than two units of full share are left for each of several actors, a unit takes a fixed part of the rest, down
    to 1/`TAPER` of a share, so that the actors end at about the same time (guided self-scheduling, Polychronopoulos &
    Kuck 1987). A unit of more than `PIXELS` is cut again, so that memory does not depend on what the archive holds.
    Vectorised: ten million images take seconds and a few arrays.

    Returns (order [n], unit [n]): `order` holds the images' indices in their units' order, and `unit[i]`, ascending
    from 0 without gaps, is the unit of image `order[i]`. The same input gives the same units. `load` is in the order of
    the listing, which images of equal windows and start step keep; `unit_images` is the mean number of images of a unit
    of full share; `slots` are the windows that an actor has in flight. The units are those of one of the `samples` of
    each image, but for the limit of pixels.
    """
    order = _dearest_images_first(load)
    if not len(order):
        return order, order.copy()
    slotfuls = _firsts((np.cumsum(load.windows[order]) - load.windows[order]) // slots)
    cost = np.add.reduceat(image_costs(load)[order], slotfuls)
    share = cost.sum() / -(-len(order) // unit_images)
    left = cost[::-1].cumsum()[::-1] - cost / 2  # a slotful belongs to the unit that contains its middle
    cut = np.floor(_units_in(cost.sum(), share, actors) - _units_in(left, share, actors))
    unit = np.repeat(cut, np.diff(np.append(slotfuls, len(order))))
    return order, _within_pixels(_numbered(np.diff(unit, prepend=unit[0]) != 0), load.pixels[order] * samples)


def pack_shards(load: Workload, images: int) -> tuple[Integers, Integers]:
    """As `pack`, in units of exactly so many images but the last, because a unit becomes a shard.

    A unit of more than `PIXELS` is cut again all the same.
    """
    order = _dearest_images_first(load)
    unit = np.arange(len(order)) // images
    return order, _within_pixels(unit, load.pixels[order]) if len(order) else unit


def _dearest_images_first(load: Workload) -> Integers:
    """Most windows first, then hardest first; stable."""
    order = hardest_first(load.start_step)
    return order[hardest_first(load.windows[order])]


def _within_pixels(unit: Integers, pixels: Integers) -> Integers:
    """The units, numbered anew, after those of more than `PIXELS` are cut."""
    before = np.cumsum(pixels) - pixels
    filled = (before - before[_firsts(unit)][unit]) // PIXELS
    return _numbered((np.diff(unit, prepend=0) != 0) | (np.diff(filled, prepend=0) != 0))


def _firsts(values: npt.NDArray[np.number]) -> Integers:
    """Where runs of equal values begin."""
    return np.append(0, 1 + np.flatnonzero(np.diff(values)))


def _numbered(begins: npt.NDArray[np.bool_]) -> Integers:
    """[n] numbers from 0 of the runs whose first elements are marked; the very first needs no mark."""
    return np.cumsum(np.append(False, begins[1:]))


@dataclass(frozen=True)
class Packing:
    """The packing of a run."""

    unit_images: int | None  # the mean number of images of a unit of full share; None chooses
    slots: int  # this and actors are the pool's
    actors: int = 1
    samples: int = 1  # restorations of each image
    images_per_shard: int | None = None  # where each unit becomes a shard: its number of images

    def __call__(self, load: Workload) -> tuple[Integers, Integers]:
        """`pack`, or `pack_shards`."""
        if self.images_per_shard is not None:
            return pack_shards(load, self.images_per_shard)
        size = self.unit_images or choose_unit_images(load, self.actors, self.slots)
        return pack(load, size, self.slots, self.actors, self.samples)


def hardest_first(start_step: Integers) -> Integers:
    """The order of descending numbers; stable. Sixteen bits are enough for every chain, and sort by radix."""
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

    The cost is in window evaluations. `plan` holds rows of units in their order, each unit's rows together. No Python
    object is made for an image.
    """
    ids = plan["unit_id"].combine_chunks() if len(plan) else pa.array([], pa.string())
    first = unit_starts(ids)
    images = np.diff(np.append(first, len(plan)))
    cost = unit_costs(workload_of(plan), first)
    units = pa.table({"unit_id": ids.take(pa.array(first)), "first": first, "images": images, "cost": cost})
    return units.take(pa.array(dearest_first(cost)))


def unit_costs(load: Workload, first: Integers) -> Integers:
    """Each unit's cost in evaluations, from images in their units' order and the indices at which the units begin."""
    if not len(first):
        return np.array([], np.int64)
    return np.add.reduceat(load.evaluations + ALONE * load.windows, first, dtype=np.int64)


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
