"""Orphans of a run: files that killed writers left behind and that no commit names."""

from __future__ import annotations

import pyarrow.compute as pc

from flashray import storage
from flashray.pipeline.commit import committed_units, read_commits
from flashray.pipeline.damage import PROMISED, ROWS, digests, restored_files
from flashray.pipeline.lease import held
from flashray.pipeline.outputs import Layout, image_of
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.verify import read_run


def clean(output: str) -> list[str]:
    """Delete the orphans; returns their URIs.

    Orphans are restored images and samples of them that the plan names and no commit does, and half-written files (on
    local disks only; an object is written completely or not at all). Images of pending units are kept, because the same
    command writes them again, and so is a file with the bytes of any commit, also of one that no longer counts; but of
    shards only while units are pending, because then all their images are in others. A file that the plan does not name
    is never deleted: no run wrote it.

    ConfigError when the output holds no run with a plan; FlashrayError when a driver is at work on it, whose files
    these may be.
    """
    output = read_run(output)[1].output
    with held(output):
        record, status = read_run(output)
        layout = Layout.of_record(output, record)
        orphans = orphans_of(layout, status)
        if orphans and (len(status.pending) or not layout.sharded):
            batches = read_commits(output, committed_units(output)).select(PROMISED).to_batches(ROWS)
            rows = (row for batch in batches for row in batch.to_pylist())
            promised = {file["sha256"] for row in rows for file in layout.promised(row)}
            orphans = [name for name, digest in digests(output, orphans).items() if digest not in promised]
        found = [storage.join(output, name) for name in orphans] + storage.half_written(output)
        for uri in found:
            storage.delete(uri)
    return found


def orphans_of(layout: Layout, status: RunStatus) -> list[str]:
    """Names of the files that some plan of the run names, and no valid commit or pending unit.

    Of shards also those that are superseded, because one was damaged and its images were restored into others.
    """
    results = status.results
    done = results.filter(pc.equal(results["status"], "ok"))
    keep, planned = layout.files(done, status.pending), layout.files(status.plan, status.members)
    lost = planned - keep
    return [name for name in restored_files(layout.output) if image_of(name) in lost]
