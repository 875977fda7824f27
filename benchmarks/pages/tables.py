"""Tables of an experiment: means with bootstrap intervals, and paired differences of methods on the same images."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.experiment_file import brief
from benchmarks.results import Result
from flashray.metrics import mean_interval
from flashray.report.markdown import to_markdown

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float, float]  # mean, low, high


@dataclass(frozen=True)
class Metric:
    """How a metric is shown; `sign` is +1 where more is better."""

    name: str
    title: str
    digits: int
    sign: int

    @property
    def heading(self) -> str:
        return f"{self.title} {'↑' if self.sign > 0 else '↓'}"


METRICS = (
    Metric("psnr", "PSNR (dB)", 2, +1),
    Metric("ssim", "SSIM", 3, +1),
    Metric("lpips", "LPIPS", 3, -1),
)
FEW = 6  # images; of fewer, a bootstrap interval is too narrow to decide anything
_COLUMNS = frozenset(  # of `quality_rows`; all others are the settings that an experiment varied
    ["task", "method", "images", "chain", "nfe", "nfe_max", "seconds", "fallbacks", "failed"]
    + [metric.name + ending for metric in METRICS for ending in ("", "_low", "_high")]
    + ["fid", "kid", "fd_vgg16", "kd_vgg16"]  # distances between the sets of restored and clean images
)


@dataclass(frozen=True)
class Difference:
    """`better` minus `worse` on the images that both restored, with a 95 % interval; `holds`: yes, no or unclear."""

    task: str
    better: str
    worse: str
    metric: Metric
    images: int
    interval: Interval
    nfe: tuple[float, float]
    bases: tuple[str, str]  # the methods' names before they were varied

    @property
    def holds(self) -> str:
        """Whether the better one is better: yes or no where the interval leaves out zero, of at least FEW images."""
        if self.images < FEW:
            return "unclear"
        low, high = sorted(self.metric.sign * bound for bound in self.interval[1:])
        return "yes" if low > 0 else "no" if high < 0 else "unclear"


def paired_interval(values: Iterable[float | None], others: Iterable[float | None]) -> Interval:
    """Mean of value - other over the same images, and its interval.

    Differences between images that both methods share cancel, so this separates two methods even where the intervals of
    their means overlap. An image without one of the values is left out; equal values, infinite ones included, differ by
    0. ValueError when the lengths differ.
    """

    def difference(value: float | None, other: float | None) -> float | None:
        if value is None or other is None:
            return None
        return 0.0 if value == other else value - other

    return mean_interval([difference(value, other) for value, other in zip(values, others, strict=True)])


def column(result: Result, name: str, keys: Sequence[str] | None = None) -> Floats:
    """A column of a cell's rows as numbers, NaN where there is none; of these images, in their order."""
    values = np.array([np.nan if value is None else value for value in result.rows[name].to_pylist()], np.float64)
    if keys is None:
        return values
    index = {key: n for n, key in enumerate(result.rows["key"].to_pylist())}
    return values[[index[key] for key in keys]]


def shared_keys(results: Iterable[Result]) -> list[str]:
    """The images that all of these cells restored, in the first one's order."""
    lists = [result.rows["key"].to_pylist() for result in results]
    shared = set(lists[0]).intersection(*lists)
    return [key for key in lists[0] if key in shared]


def interval(result: Result, name: str, keys: Sequence[str] | None = None) -> Interval:
    """Mean and 95 % bootstrap interval of a column."""
    return mean_interval(column(result, name, keys))


def quality_rows(results: Sequence[Result], keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """A row a cell, in plain numbers: what it is, means with `_low` and `_high`, cost, failures and fall-backs.

    Args:
        keys: only these images.
    """
    rows = []
    for result in results:
        task, method = result.cell.task, result.cell.method
        row: dict[str, Any] = {"task": task.base or task.name, "method": method.base or method.name}
        row |= task.at | method.at
        row["images"] = len(result.rows) if keys is None else len(keys)
        for metric in METRICS:
            mean, low, high = interval(result, metric.name, keys)
            row |= {metric.name: mean, f"{metric.name}_low": low, f"{metric.name}_high": high}
        if keys is None:
            row |= result.summary.get("distances", {})
        nfe = column(result, "nfe", keys)
        row["chain"] = method.solver.steps if method.solver else None
        row |= {"nfe": float(nfe.mean()), "nfe_max": int(nfe.max())}
        row["seconds"] = float(column(result, "seconds", keys).mean())
        row["fallbacks"] = int(column(result, "fallback", keys).sum())
        row["failed"] = sum(error is not None for error in result.rows["error"].to_pylist())
        rows.append(row)
    return rows


def quality_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of `quality_rows`, of one task: means and cost, the varied settings as columns."""
    shown = []
    for row in rows:
        axes = {name: value for name, value in row.items() if name not in _COLUMNS}
        cells = {
            "method": row["method"],
            **{_title(axis): "" if value in (None, "") else brief(value) for axis, value in axes.items()},
            "images": str(row["images"]),
        }
        for metric in METRICS:
            mean = row[metric.name]
            cells[metric.heading] = "" if math.isnan(mean) else f"{mean:.{metric.digits}f}"
        cells["mean NFE (chain)"] = f"{row['nfe']:.1f} ({row['chain']})" if row["chain"] else ""
        cells["s / image"] = f"{row['seconds']:.2g}" if row["seconds"] >= 0.01 else "< 0.01"
        cells["fall-backs"] = str(row["fallbacks"] or "")
        cells["failed"] = str(row["failed"] or "")
        shown.append(cells)
    return to_markdown(shown)


def differences(results: Sequence[Result], pairs: Sequence[Sequence[str]]) -> list[Difference]:
    """Of each [better, worse] pair, on every task: the difference in every metric that both have.

    A pair names methods as the experiment's file does; varied methods are paired where their settings are the same.
    """
    found = []
    for better_name, worse_name in pairs:
        for better in _named(better_name, results):
            for worse in _named(worse_name, results):
                at = worse.cell.method.at, better.cell.method.at
                if better.cell.task != worse.cell.task or (all(at) and at[0] != at[1]):
                    continue
                found += [one for one in (_difference(better, worse, metric) for metric in METRICS) if one]
    return found


def difference_rows(found: Sequence[Difference]) -> list[dict[str, Any]]:
    """The same in plain numbers."""
    return [
        {
            "task": one.task,
            "better": one.better,
            "worse": one.worse,
            "metric": one.metric.name,
            "images": one.images,
            **dict(zip(("difference", "low", "high"), one.interval, strict=True)),
            "nfe_better": one.nfe[0],
            "nfe_worse": one.nfe[1],
            "holds": one.holds,
        }
        for one in found
    ]


def difference_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of `difference_rows`: a row a pair and task, a column a metric with yes, no or unclear and the mean."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for one in found:
        row = rows.setdefault(
            (one["task"], one["better"], one["worse"]),
            {
                "task": one["task"],
                "better?": f"{one['better']} − {one['worse']}",
                "images": str(one["images"]),
                "NFE": f"{one['nfe_better']:.1f} : {one['nfe_worse']:.1f}",
            },
        )
        metric = next(metric for metric in METRICS if metric.name == one["metric"])
        row[metric.heading] = f"{one['holds']}: {one['difference']:+.{metric.digits + 1}f}"
    return to_markdown(list(rows.values()))


def seconds_of(result: Result) -> float:
    """Mean seconds an image."""
    return float(column(result, "seconds").mean())


def pareto_front(results: Sequence[Result], metric: Metric) -> list[Result]:
    """The cells that no cell of as few seconds is better than, by ascending seconds."""
    front: list[Result] = []
    best = -math.inf
    for one in sorted(results, key=lambda one: (seconds_of(one), -metric.sign * interval(one, metric.name)[0])):
        value = metric.sign * interval(one, metric.name)[0]
        if value > best:
            best = value
            front.append(one)
    return front


def front_table(results: Sequence[Result]) -> str:
    """Markdown: the cells on any metric's front by ascending seconds, and whose front they are on."""
    fronts = {metric: pareto_front(results, metric) for metric in METRICS}
    rows = []
    for one in sorted(results, key=seconds_of):
        on = [metric for metric in METRICS if any(one is other for other in fronts[metric])]
        if on:
            row = {"method": one.cell.method.name, "seconds an image": f"{seconds_of(one):.3g}"}
            row["mean NFE"] = f"{column(one, 'nfe').mean():.1f}"
            row |= {metric.heading: f"{interval(one, metric.name)[0]:.{metric.digits + 1}f}" for metric in METRICS}
            rows.append(row | {"best for its seconds in": ", ".join(metric.title for metric in on)})
    return to_markdown(rows)


def severities(results: Sequence[Result]) -> tuple[Floats, Floats, Floats, str]:
    """(level, σ̂, σ̄) of every image, and the name of the level: the first parameter of the degradation."""
    texts = [json.loads(text) for one in results for text in one.rows["parameters"].to_pylist()]
    name = next(iter(texts[0]))
    level = np.array([values[name] for values in texts], np.float64)
    hat, true = (np.concatenate([column(one, which) for one in results]) for which in ("sigma_hat", "sigma_true"))
    return level, hat, true, name


def correlations(level: Floats, hat: Floats, true: Floats) -> dict[str, float]:
    """How well σ̂ tells the true error and the level."""
    return {
        "Spearman (σ̂, σ̄)": _spearman(hat, true),
        "Pearson (σ̂, σ̄)": float(np.corrcoef(hat, true)[0, 1]),
        "Spearman (σ̂, level)": _spearman(hat, level),
        "Spearman (σ̄, level)": _spearman(true, level),
    }


def severity_table(results: Sequence[Result]) -> str:
    """Markdown: what σ̂ and σ̄ are in each setting, and over all settings; once for methods that share σ̂."""
    told: dict[str, dict[str, tuple[Result, Floats, Floats]]] = {}  # method → task → (cell, σ̂, σ̄)
    seen: set[tuple[str, bytes]] = set()
    for one in results:
        hat, true = column(one, "sigma_hat"), column(one, "sigma_true")
        here = (one.cell.task.name, hat.tobytes())
        if np.isnan(hat).any() or np.isnan(true).any() or here in seen:
            continue
        seen.add(here)
        told.setdefault(one.cell.method.name, {})[one.cell.task.name] = (one, hat, true)
    rows = []
    for method, settings in told.items():
        for one, hat, true in settings.values():
            at = {_title(axis): brief(value) for axis, value in one.cell.task.at.items()}
            rows.append({"method": method, **at, **_agreement(hat, true)})
        if len(settings) > 1:
            together = (np.concatenate([one[n] for one in settings.values()]) for n in (1, 2))
            rows.append({"method": f"{method}, all of them", **_agreement(*together)})
    return to_markdown(rows)


def _agreement(hat: Floats, true: Floats) -> dict[str, str]:
    values = {"mean σ̂": hat.mean(), "mean σ̄": true.mean(), "Spearman (σ̂, σ̄)": _spearman(hat, true)}
    return {"images": str(len(hat)), **{name: f"{value:.3f}" for name, value in values.items()}}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with the union of the columns; NaN and None are empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if _nothing(value) else value for name, value in row.items()})
    return text.getvalue()


def _difference(better: Result, worse: Result, metric: Metric) -> Difference | None:
    keys = shared_keys([better, worse])
    span = paired_interval(column(better, metric.name, keys), column(worse, metric.name, keys))
    if math.isnan(span[0]):
        return None
    nfe = (float(column(better, "nfe", keys).mean()), float(column(worse, "nfe", keys).mean()))
    methods = better.cell.method, worse.cell.method
    bases = methods[0].base or methods[0].name, methods[1].base or methods[1].name
    names = methods[0].name, methods[1].name
    return Difference(better.cell.task.name, *names, metric, len(keys), span, nfe, bases)


def _named(name: str, results: Sequence[Result]) -> list[Result]:
    return [one for one in results if name in (one.cell.method.base, one.cell.method.name)]


def _title(axis: str) -> str:
    return axis.replace("_", " ")


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _spearman(one: Floats, other: Floats) -> float:
    """Pearson of the ranks, ties sharing theirs."""
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse].astype(np.float64)
