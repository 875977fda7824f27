"""Units: fixed lists of images of like start step and about equal cost, the grain of dispatch, retry and resume."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
ALONE = 1  # what an image costs besides its NFE (encoder pass, decoding, writing), in NFE
MOST = 4  # a unit holds at most about so many times the mean number of images, however easy they are


def image_costs(nfe: Integers) -> Floats:
    """What each image weighs in packing, in NFE. The floor keeps units of very easy images from growing without end."""
    cost = nfe.astype(np.float64) + ALONE
    return np.maximum(cost, cost.mean() / MOST) if len(cost) else cost


def pack(start_step: Integers, nfe: Integers, unit_images: int) -> tuple[Integers, Integers]:
    """Pack images into units: sorted by start step, hardest first, and cut where the cost reaches an equal share.

    Vectorised: ten million images take seconds and a few arrays.

    Args:
        start_step, nfe: [n], in the order of the listing; images of equal start step keep that order.
        unit_images: the mean number of images of a unit.

    Returns:
        (order [n], unit [n]): `order` holds the images' places in their units' order, and `unit[i]`, ascending from 0
        without gaps, is the unit of image `order[i]`. The same input gives the same units.
    """
    order = np.argsort(-start_step, kind="stable").astype(np.int64)
    if not len(order):
        return order, order.copy()
    cost = image_costs(nfe)[order]
    units = -(-len(order) // unit_images)
    share = cost.sum() / units
    middle = np.cumsum(cost) - cost / 2  # an image belongs where its middle lies
    unit = np.minimum(middle // share, units - 1).astype(np.int64)
    return order, np.unique(unit, return_inverse=True)[1].astype(np.int64)


def unit_ids(attempt: int, unit: Integers) -> pa.Array:
    """`AA-NNNNNNNN`: the attempt (0, then one more for each retry of failed images) and the unit's number."""
    numbers = pc.utf8_lpad(pa.array(unit).cast(pa.string()), 8, "0")
    return pc.binary_join_element_wise(pa.scalar(f"{attempt:02d}"), numbers, "-")


def group(plan: pa.Table, columns: list[str]) -> pa.Table:
    """One row a unit, dearest first: unit_id, images, cost (in NFE), and each of `columns` as a list.

    `plan` holds rows of units in their order, each unit's rows together. No Python object is made for an image.
    """
    plan = plan.combine_chunks()
    ids = plan["unit_id"].combine_chunks() if len(plan) else pa.array([], pa.string())
    codes = ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.diff(codes, prepend=-1)).astype(np.int64)
    offsets = pa.array(np.append(starts, len(plan)), pa.int32())
    images = np.diff(np.append(starts, len(plan)))
    nfe = plan["nfe"].to_numpy().astype(np.int64)
    cost = (np.add.reduceat(nfe, starts) if len(starts) else nfe) + ALONE * images
    data: dict[str, pa.Array] = {
        "unit_id": ids.take(pa.array(starts)),
        "images": pa.array(images),
        "cost": pa.array(cost),
    }
    for name in columns:
        values = plan[name].combine_chunks() if len(plan) else pa.array([], plan.schema.field(name).type)
        data[name] = pa.ListArray.from_arrays(offsets, values)
    return pa.table(data).take(pa.array(np.argsort(-cost, kind="stable")))
