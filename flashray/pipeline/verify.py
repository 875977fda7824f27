"""Proof that a run directory holds what it says: every planned image once, each with the bytes of its commit."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.errors import ConfigError
from flashray.pipeline.run_record import read_record
from flashray.pipeline.run_status import State

_READERS = 16
_NAMED = 5  # keys a line


@dataclass(frozen=True)
class Verified:
    """What was found; the lists hold keys, but `strangers` names of files.

    Attributes:
        images: planned.
        restored: reconstructions whose bytes are their commit's.
        failed: with an error in the plan or in their commit; `--retry-failed` takes them up.
        pending: of units that are not committed: the same command goes on with them.
        duplicated: with more than one row in the plan, or committed by more than one unit that counts.
        missing: committed, and no reconstruction is there.
        changed: reconstructions whose bytes are others than their commit's.
        strangers: reconstructions that no commit and no pending unit knows.
        unplanned: how many images of the archive no plan names.
    """

    images: int
    restored: int
    failed: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    unplanned: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing contradicts a commit. Failed and pending images do not: the run says so itself."""
        return not (self.duplicated or self.missing or self.changed or self.strangers)

    @property
    def complete(self) -> bool:
        """Whether besides every planned image is restored."""
        return self.sound and not (self.failed or self.pending or self.unplanned)

    def lines(self) -> list[str]:
        """The findings, for people."""
        found = [f"{self.images:,} images planned, {self.restored:,} reconstructions match their commits"]
        for name, keys in asdict(self).items():
            if isinstance(keys, list) and keys:
                more = f" and {len(keys) - _NAMED:,} more" if len(keys) > _NAMED else ""
                found.append(f"{len(keys):,} {name}: {', '.join(keys[:_NAMED])}{more}")
        if self.unplanned:
            found.append(f"{self.unplanned:,} images of the archive are in no plan")
        return found


def verify(output: str) -> Verified:
    """Read plan, commits and every reconstruction of a run directory; changes nothing.

    Raises:
        ConfigError: when it holds no run with a plan.
    """
    record, state = read_run(output)
    output = state.output
    results = state.results
    done = results.filter(pc.equal(results["status"], "ok"))
    promised = dict(zip(done["key"].to_pylist(), done["sha256"].to_pylist(), strict=True))
    there = {entry.key.removesuffix(".png") for entry in storage.list_files(storage.join(output, "reconstructions"))}

    def digest(key: str) -> str:
        data = storage.read_bytes(storage.join(output, "reconstructions", key + ".png"))
        return hashlib.sha256(data).hexdigest()

    present = sorted(promised.keys() & there)
    with ThreadPoolExecutor(_READERS) as readers:
        changed = [
            key for key, found in zip(present, readers.map(digest, present), strict=True) if found != promised[key]
        ]
    failed, pending = (sorted(table["key"].to_pylist()) for table in (state.failures, state.pending))
    # of a failed or pending image an earlier attempt, or one that was cut short, may have left something
    known = promised.keys() | set(failed) | set(pending)
    return Verified(
        images=len(state.plan),
        restored=len(present) - len(changed),
        failed=failed,
        pending=pending,
        duplicated=sorted({*_twice(state.plan["key"]), *_twice(results["key"])}),
        missing=sorted(promised.keys() - there),
        changed=changed,
        strangers=sorted(there - known),
        unplanned=record["archive"]["images"] - len(pc.unique(state.plan["key"])),
    )


def read_run(output: str) -> tuple[dict[str, Any], State]:
    """run.json, and what became of the images.

    Raises:
        ConfigError: when the output holds no run with a plan.
    """
    output = storage.normalise(output)
    record = read_record(output)
    if record is None:
        raise ConfigError(f"{output} holds no run.json; name the output of jobs/reconstruct.py")
    state = State.read(output)
    if not state.attempts:
        raise ConfigError(f"{output} has no plan yet: nothing is promised, so there is nothing to verify")
    return record, state


def _twice(keys: pa.ChunkedArray) -> list[str]:
    counted = pc.value_counts(keys.combine_chunks())
    return counted.field("values").filter(pc.greater(counted.field("counts"), 1)).to_pylist()
