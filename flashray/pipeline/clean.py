"""Orphans of a run directory: what killed writers left behind, and no commit will ever name."""

from __future__ import annotations

import pyarrow.compute as pc

from flashray import storage
from flashray.pipeline.lease import held
from flashray.pipeline.verify import read_run


def clean(output: str) -> list[str]:
    """Delete the orphans; returns their places.

    They are the reconstructions that no commit names, but for those of pending units, which the same command puts
    again, and files that are half-written (on local disks; an object is put whole or not at all). A run does not look
    for them by itself: they do no harm, and on a disk it would cost every resume a walk through all of the output.

    Raises:
        ConfigError: when it holds no run with a plan.
        FlashrayError: when a driver is at work on it, whose files these may be.
    """
    output = read_run(output)[1].output
    with held(output):
        _, state = read_run(output)
        results = state.results
        named = results.filter(pc.equal(results["status"], "ok"))["key"].to_pylist()
        keep = {*named, *state.pending["key"].to_pylist()}
        root = storage.join(output, "reconstructions")
        found = [entry.key for entry in storage.list_files(root) if entry.key.removesuffix(".png") not in keep]
        orphans = [storage.join(root, name) for name in found] + storage.half_written(output)
        for place in orphans:
            storage.delete(place)
    return orphans
