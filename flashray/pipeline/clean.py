"""Orphans of a run: files that killed writers left behind and that no commit names."""

from __future__ import annotations

import pyarrow.compute as pc

from flashray import storage
from flashray.images import output_name
from flashray.pipeline.commit import committed_units, read_commits
from flashray.pipeline.damage import digests, restored_files
from flashray.pipeline.lease import held
from flashray.pipeline.outputs import image_of
from flashray.pipeline.verify import read_run


def clean(output: str) -> list[str]:
    """Delete the orphans; returns their URIs.

    Orphans are restored images and samples of them that the plan names and no commit does, and half-written files (on
    local disks only; an object is written completely or not at all). Images of pending units are kept, because the same
    command writes them again, and so is a file with the bytes of any commit, also of one that no longer counts. A file
    that the plan does not name is never deleted: no run wrote it.

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
        lost = planned - keep
        found = digests(output, (name for name in restored_files(output) if image_of(name) in lost))
        commits = read_commits(output, committed_units(output))
        promised = {*commits["sha256"].to_pylist()}
        promised |= {file["sha256"] for files in commits["samples"].to_pylist() for file in files or ()}
        found = {name: digest for name, digest in found.items() if digest not in promised}
        orphans = [storage.join(output, name) for name in found] + storage.half_written(output)
        for uri in orphans:
            storage.delete(uri)
    return orphans
