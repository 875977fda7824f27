"""Runs side by side: the parameters that differ, and what came of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashray.build import nearest
from flashray.errors import ConfigError
from flashray.pipeline.run_config import flatten
from flashray.pipeline.run_record import given_record
from flashray.pipeline.summary import numbers, read_summary
from flashray.report.markdown import to_markdown

SHOWN = ("images", "failed", "mean_nfe", "psnr", "ssim", "lpips", "images_per_second", "solver_seconds")
# parameters that say nothing of what was done
_LEFT_OUT = ("io.output", "tracking.", "policy.plan_only", "policy.retry_failed", "policy.overwrite", "policy.verify")
_LONGEST = 40  # characters of a parameter


@dataclass(frozen=True)
class Row:
    """A run: what it is called, how it ended, its parameters and numbers."""

    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def row_of_output(output: str) -> Row:
    """The run of a run directory; ConfigError where there is none."""
    output, record = given_record(output)
    weights = {name: value for name, value in record["fingerprint"].items() if name.startswith("weights.")}
    params = {name: str(value) for name, value in (flatten(record["config"]) | weights).items()}
    summary = read_summary(output)
    if summary is None:
        return Row(output, "not finished", params, {})
    found = numbers(summary)
    return Row(output, "FINISHED", params, {name: value for name, value in found.items() if value is not None})


def by_metric(rows: Sequence[Row], name: str, ascending: bool) -> list[Row]:
    """Sorted by a number, rows without it last; ConfigError where no row has it."""
    check_metric(rows, name)
    sign = 1 if ascending else -1
    return sorted(rows, key=lambda row: sign * row.metrics[name] if known(row, name) else math.inf)


def compare(rows: Sequence[Row], metrics: Sequence[str] = SHOWN) -> str:
    """A Markdown table: a row a run; the parameters that differ, then the metrics that any of them has."""
    names = {name: None for row in rows for name in row.params if not name.startswith(_LEFT_OUT)}
    differ = [name for name in names if len({row.params.get(name) for row in rows}) > 1]
    for name in metrics:
        check_metric(rows, name)
    shown = [name for name in metrics if any(known(row, name) for row in rows)]
    values = {name: _cut([row.params.get(name, "") for row in rows]) for name in differ}
    return to_markdown(
        [
            {"run": row.name, "status": row.status}
            | {name: values[name][at] for name in differ}
            | {name: f"{row.metrics[name]:.5g}" if known(row, name) else "" for name in shown}
            for at, row in enumerate(rows)
        ]
    )


def _cut(values: Sequence[str]) -> Sequence[str]:
    """The values without their middles where they are long, unless different ones would look the same."""
    half = _LONGEST // 2
    short = [value if len(value) <= _LONGEST else f"{value[:half]}…{value[-half:]}" for value in values]
    return short if len({*short}) == len({*values}) else values


def check_metric(rows: Sequence[Row], name: str) -> None:
    """Raise ConfigError with the nearest names where no row has a number of this name, and some have any."""
    there = {metric for row in rows for metric in row.metrics}
    if there and name not in there | set(SHOWN):
        raise ConfigError(
            f"metric {name!r} is in none of the runs{nearest(name, there)}; they have {', '.join(sorted(there))}"
        )


def known(row: Row, name: str) -> bool:
    return not math.isnan(row.metrics.get(name, math.nan))
