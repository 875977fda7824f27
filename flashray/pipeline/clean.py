"""Orphans of a run: what killed writers left behind, and no commit will ever name."""

from __future__ import annotations

import pyarrow.compute as pc

from flashray import storage
from flashray.pipeline.lease import held
from flashray.pipeline.outputs import output_name
from flashray.pipeline.verify import read_run, restored_files


def clean(output: str) -> list[str]:
    """Delete the orphans; returns their URIs.

    They are restored images that the plan names and no commit does, but for those of pending units, which the same
    command puts again, and files that are half-written (on local disks; an object is put whole or not at all). A file
    that the plan does not name is never touched: no run wrote it. A run does not look for orphans by itself: they do no
    harm, and on a disk it would cost every resume a walk through all of the output.

    Raises:
        ConfigError: when it holds no run with a plan.
        FlashrayError: when a driver is at work on it, whose files these may be.
    """
    output = read_run(output)[1].output
    with held(output):
        record, status = read_run(output)
        format = record["config"]["io"]["format"]
        results = status.results
        done = results.filter(pc.equal(results["status"], "ok"))["key"].to_pylist()
        keep = {output_name(key, format) for key in (*done, *status.pending["key"].to_pylist())}
        planned = {output_name(key, format) for key in status.plan["key"].to_pylist()}
        found = [name for name in restored_files(output) if name in planned - keep]
        orphans = [storage.join(output, name) for name in found] + storage.half_written(output)
        for uri in orphans:
            storage.delete(uri)
    return orphans
