"""The status of each image of a run: planned, done, failed, or pending."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from flashray.pipeline.commit import committed_units, read_commits
from flashray.pipeline.plan import read_plan


@dataclass(frozen=True)
class RunStatus:
    """The plan's latest rows and the commits, as they are now.

    Attributes:
        output: the output of the run.
        plan: one row an image, the latest attempt's.
        attempts: number of plans; 0 before the first one is complete.
        units: ids of the committed units.
    """

    output: str
    plan: pa.Table
    attempts: int
    units: frozenset[str]

    @classmethod
    def read(cls, output: str) -> RunStatus:
        plan, attempts = read_plan(output)
        return cls(output, plan, attempts, frozenset(committed_units(output)) if attempts else frozenset())

    @property
    def planned(self) -> pa.Table:
        """Plan rows that belong to a unit."""
        return self.plan.filter(pc.is_valid(self.plan["unit_id"]))

    @property
    def pending(self) -> pa.Table:
        """Plan rows of the units that are not committed."""
        done = pa.array(sorted(self.units), pa.string())
        return self.planned.filter(pc.invert(pc.is_in(self.planned["unit_id"], done)))

    @cached_property
    def results(self) -> pa.Table:
        """Valid commit rows; the old row of a retried image is not. Columns of `COMMIT`, and unit_id."""
        wanted = set(pc.unique(self.planned["unit_id"]).to_pylist()) & self.units
        rows = read_commits(self.output, wanted)
        unit = self.plan["unit_id"].take(pc.index_in(rows["key"], self.plan["key"]))
        return rows.filter(pc.equal(unit, rows["unit_id"]))

    @property
    def failures(self) -> pa.Table:
        """key and error of the images that could not be read or solved."""
        sources = (self.plan, self.results)
        failed = [table.filter(pc.equal(table["status"], "error")).select(["key", "error"]) for table in sources]
        return pa.concat_tables(failed).sort_by("key")
