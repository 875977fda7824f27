"""The status of each image of a run: planned, done, failed, or pending."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from flashray.errors import ConfigError
from flashray.pipeline.commit import committed_units, read_commits
from flashray.pipeline.plan import latest_rows, read_plans
from flashray.pipeline.run_folder import run_uri
from flashray.shown import first_of


@dataclass(frozen=True)
class RunStatus:
    """The plan's latest rows and the commits, as they are now."""

    output: str
    plan: pa.Table  # one row an image, the latest attempt's
    attempts: int  # plans; 0 before the first one is complete
    units: frozenset[str]  # ids of the committed units
    members: pa.Table  # key and unit_id of every row of every plan that belongs to a unit

    @classmethod
    def read(cls, output: str) -> RunStatus:
        """As the run folder has it now.

        ConfigError when a plan is damaged or missing, or a commit belongs to no plan.
        """
        # commits first: the plan of one that is there was there before
        units = frozenset(committed_units(output))
        plans = read_plans(output)
        latest = latest_rows(plans)
        members = pa.concat_tables([plan.select(["key", "unit_id"]) for plan in [latest.slice(0, 0), *plans]])
        members = members.filter(pc.is_valid(members["unit_id"]))
        strange = units.difference(pc.unique(members["unit_id"]).to_pylist())
        if strange:
            raise _misfit(output, strange, "belong to no plan")
        return cls(output, latest, len(plans), units, members)

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
        """Valid commit rows; the old row of a retried image is not. Columns of `COMMIT`, and unit_id.

        ConfigError when a commit is damaged, or has other images than its unit.
        """
        wanted = set(pc.unique(self.planned["unit_id"]).to_pylist()) & self.units
        rows = read_commits(self.output, wanted)
        planned = self.members.filter(pc.is_in(self.members["unit_id"], pa.array(sorted(wanted), pa.string())))
        if misfits := _differing(planned, rows):
            raise _misfit(self.output, misfits, "have other images than the plan gives their units")
        unit = self.plan["unit_id"].take(pc.index_in(rows["key"], self.plan["key"]))
        return rows.filter(pc.equal(unit, rows["unit_id"]))

    @property
    def failures(self) -> pa.Table:
        """key and error of the images that could not be read or solved."""
        sources = (self.plan, self.results)
        failed = [table.filter(pc.equal(table["status"], "error")).select(["key", "error"]) for table in sources]
        return pa.concat_tables(failed).sort_by("key")


def _differing(planned: pa.Table, committed: pa.Table) -> set[str]:
    """The units that have other keys in one table than in the other."""
    one, other = (pc.binary_join_element_wise(t["unit_id"], t["key"], "/") for t in (planned, committed))
    odd = [
        t["unit_id"].filter(pc.invert(pc.is_in(a, b))) for t, a, b in ((planned, one, other), (committed, other, one))
    ]
    return {unit for column in odd for unit in column.to_pylist()}


def _misfit(output: str, units: Collection[str], what: str) -> ConfigError:
    named = first_of(sorted(units))
    return ConfigError(
        f"{len(units)} commits in {run_uri(output, 'commits')} {what} ({named}): the plan was deleted, or belongs to "
        "another run. Put it back, or choose another output; the restored images stay where they are"
    )
