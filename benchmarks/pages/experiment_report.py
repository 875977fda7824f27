"""The report of an experiment: one Markdown page with its tables and figures, the numbers as CSV and Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from PIL import Image

from benchmarks.experiment_file import Experiment
from benchmarks.pages import figures, sheets, tables
from benchmarks.pages.tables import Difference
from benchmarks.results import Result, Store, to_parquet
from flashray.report.markdown import to_markdown


def write_report(
    experiment: Experiment, results: Sequence[Result], store: Store, record: Mapping[str, Any]
) -> list[str]:
    """Write report.md, tables, figures and images.parquet beside the cells; returns the figures' names there.

    Args:
        record: run.json, of which the page shows command and scale.
    """
    found = tables.differences(results, experiment.pairs)
    pictures = _pictures(experiment, results, found)
    for name, picture in pictures.items():
        store.put(sheets.to_png(picture), "figures", name)
    written = {"table.csv": tables.quality_rows(results)}
    shared = [row for here in figures.by_base(results).values() for row in _shared_rows(here)]
    written |= {"shared.csv": shared, "differences.csv": tables.difference_rows(found)}
    for name, rows in written.items():
        if rows:
            store.put(tables.to_csv(rows), name)
    store.put(to_parquet(every_image(results)), "images.parquet")
    page = _page(experiment, results, found, list(pictures), record, shared=bool(shared))
    store.put(page, "report.md")
    return [f"figures/{name}" for name in pictures]


def _shared_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A task's rows over the images that every cell has; none where every cell has all."""
    keys = tables.shared_keys(results)
    fewer = 0 < len(keys) < max(len(one.rows) for one in results)
    return tables.quality_rows(results, keys) if fewer else []


def every_image(results: Sequence[Result]) -> pa.Table:
    """The rows of all cells, with the names of task and method."""
    parts = []
    for one in results:
        names = {"task": one.cell.task.name, "method": one.cell.method.name}
        rows = one.rows
        for n, (name, value) in enumerate(names.items()):
            rows = rows.add_column(n, name, pa.array([value] * len(rows), pa.string()))
        parts.append(rows)
    return pa.concat_tables(parts)


def _pictures(experiment: Experiment, results: Sequence[Result], found: Sequence[Difference]) -> dict[str, Image.Image]:
    """File name → figure; what the experiment's kind shows."""
    drawn: dict[str, Image.Image | None] = {}
    if experiment.kind == "severity":
        drawn["severity.png"] = figures.severity_figure(results)
        drawn["outliers.png"] = sheets.outlier_sheet(results)
    elif experiment.kind == "adaptivity":
        for n, (_, here) in enumerate(figures.by_base(results).items()):
            these = [one for one in found if one.task in {cell.cell.task.name for cell in here}]
            drawn[f"adaptivity{_number(n)}.png"] = figures.adaptivity_figure(here, these)
    elif experiment.kind == "robustness":
        if any(one.cell.task.at for one in results):
            drawn["robustness.png"] = figures.robustness_figure(results)
    elif experiment.kind == "pareto":
        drawn["pareto.png"] = figures.pareto_figure(results)
    elif experiment.kind == "ablation":
        for n, (_, here) in enumerate(figures.by_base(results).items()):
            drawn[f"ablation{_number(n)}.png"] = figures.ablation_figure(here)
    else:
        drawn["cost.png"] = figures.cost_figure(results)
    if experiment.kind in ("comparison", "robustness"):
        plain = [here for here in figures.by_base(results).values() if not any(one.cell.task.at for one in here)]
        for n, here in enumerate(plain):
            drawn[f"pictures{_number(n)}.png"] = sheets.picture_sheet(here)
    return {name: picture for name, picture in drawn.items() if picture is not None}


def _page(
    experiment: Experiment,
    results: Sequence[Result],
    found: Sequence[Difference],
    pictures: Sequence[str],
    record: Mapping[str, Any],
    shared: bool,
) -> str:
    most = max(len(one.rows) for one in results)
    machines = "; ".join(sorted({one.summary["machine"] for one in results}))
    text = [
        f"# {experiment.title}\n",
        f"```\n{record['command']}\n```\n",
        f"Scale {record['scale']}, at most {most} images a cell; {machines}. Means over the images; table.csv has "
        "their 95 % bootstrap intervals"
        + (", and shared.csv the means over the images that every row has" if shared else "")
        + ". NFE are denoiser evaluations.\n",
    ]
    text += [f"![{name.removesuffix('.png')}](figures/{name})\n" for name in pictures]
    if experiment.kind == "severity":
        text += ["## Correlations\n", to_markdown(_correlations(results))]
    for base, here in figures.by_base(results).items():
        if experiment.kind == "pareto":
            text += [f"## {base}: the Pareto front\n", tables.front_table(here)]
        text += [f"## {base}\n", tables.quality_table(tables.quality_rows(here))]
        if experiment.kind == "robustness" and (told := tables.severity_table(here)):
            text += ["What the severity encoder says:\n", told]
    if found:
        text += [
            "## Differences on the same images\n",
            "`yes` and `no` where the 95 % interval of the mean difference leaves out zero, over at least "
            f"{tables.FEW} images; differences.csv has the intervals.\n",
            tables.difference_table(tables.difference_rows(found)),
        ]
    return "\n".join(part for part in text if part)


def _correlations(results: Sequence[Result]) -> list[dict[str, str]]:
    rows = []
    for base, here in figures.by_base(results).items():
        level, hat, true, _ = tables.severities(here)
        found = tables.correlations(level, hat, true)
        rows.append({"task": base, "pairs": str(len(hat)), **{name: f"{value:.3f}" for name, value in found.items()}})
    return rows


def _number(n: int) -> str:
    return f"_{n + 1}" if n else ""
