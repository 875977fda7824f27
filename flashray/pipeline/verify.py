"""Check that an output holds what its run records: every planned image once, each with the bytes of its commit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.compute as pc

from flashray.errors import ConfigError
from flashray.pipeline.archive import is_hidden
from flashray.pipeline.damage import missing_and_changed, restored_files
from flashray.pipeline.others import read_others
from flashray.pipeline.outputs import Layout, image_of
from flashray.pipeline.run_record import given_record
from flashray.pipeline.run_status import RunStatus
from flashray.shards.shard_index import doubled
from flashray.shown import storable

_NAMED = 5  # keys a line


@dataclass(frozen=True)
class Verified:
    """What was found; the lists hold keys, except `strangers`, which holds names of files."""

    images: int  # planned
    restored: int  # with the bytes that their commits record
    failed: list[str] = field(default_factory=list)  # with an error in plan or commit; `--retry-failed` tries again
    pending: list[str] = field(default_factory=list)  # of units that are not committed; the same command restores them
    duplicated: list[str] = field(default_factory=list)  # in several plan rows, or committed by several valid units
    missing: list[str] = field(default_factory=list)  # committed, but the image, a sample or the spread map is gone
    changed: list[str] = field(default_factory=list)  # committed, and a file has other bytes
    others_failed: list[str] = field(default_factory=list)  # files that are no images and could not be copied
    others_missing: list[str] = field(default_factory=list)  # no images, copied, and gone or of another size
    strangers: list[str] = field(default_factory=list)  # named by no commit and no pending unit; hidden ones aside
    unplanned: int = 0  # in the archive, and named by no plan

    @property
    def sound(self) -> bool:
        """Whether nothing contradicts a commit. Failed and pending images do not, because the run records them."""
        return not (self.duplicated or self.missing or self.changed or self.others_missing or self.strangers)

    @property
    def complete(self) -> bool:
        """Whether it is sound and every planned image is restored."""
        return self.sound and not (self.failed or self.pending or self.others_failed or self.unplanned)

    def lines(self) -> list[str]:
        """The findings as lines of text."""
        found = [f"{self.images:,} images planned, {self.restored:,} restored images match their commits"]
        for name, keys in asdict(self).items():
            if isinstance(keys, list) and keys:
                more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
                found.append(f"{len(keys):,} {name}: {', '.join(keys[:_NAMED])}{more}")
        if self.unplanned:
            found.append(f"{self.unplanned:,} images of the archive are in no plan")
        if self.strangers:
            found.append("no run wrote the strangers; move them away")
        if self.missing or self.changed:
            found.append("the same command with --verify makes missing and changed images again")
        return found


def verify(output: str) -> Verified:
    """Read plan, commits and every restored image; changes nothing. ConfigError where `output` holds no planned run."""
    record, status = read_run(output)
    output = status.output
    results = status.results
    promised = set(results.filter(pc.equal(results["status"], "ok"))["key"].to_pylist())
    layout = Layout.of_record(output, record)
    sizes = {storable(name): size for name, size in restored_files(output).items()}  # as keys are recorded
    others: dict[str, int] = {}
    left: list[str] = []
    for row in read_others(output).to_pylist():
        # one that could not be copied, and is there with its size all the same, is somebody's own copy
        if row["error"] is None or sizes.get(row["key"]) == row["size"]:
            others[row["key"]] = row["size"]
        else:
            left.append(row["key"])
    files = [name for name in sizes if name not in others]
    missing, changed = missing_and_changed(layout, results, {name: sizes[name] for name in files}, by_hash=True)
    failed, pending = (sorted(table["key"].to_pylist()) for table in (status.failures, status.pending))
    # of failed and pending images too: an earlier or interrupted attempt may have left a file
    # a damaged shard too, until all its images are in others: a reader would then find them twice
    known = layout.files(status.plan, *([status.members] if layout.sharded and len(status.pending) else []))
    return Verified(
        images=len(status.plan),
        restored=len(promised.difference(missing, changed)),
        failed=failed,
        pending=pending,
        duplicated=sorted({*doubled(status.plan["key"]), *doubled(results["key"])}),
        missing=missing,
        changed=changed,
        others_failed=sorted(left),
        others_missing=sorted(name for name, size in others.items() if sizes.get(name) != size),
        strangers=sorted(name for name in files if image_of(name) not in known and not is_hidden(name)),
        unplanned=max(0, record["archive"]["images"] - len(pc.unique(status.plan["key"]))),
    )


def read_run(output: str) -> tuple[dict[str, Any], RunStatus]:
    """run.json, and the status of the images; ConfigError when the output holds no run with a plan."""
    output, record = given_record(output)
    status = RunStatus.read(output)
    if not status.attempts:
        raise ConfigError(f"{output} has no plan yet, so there is nothing to verify")
    return record, status
