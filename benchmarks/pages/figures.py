"""Figures of an experiment, as PNG: matplotlib without a display, error bars are 95 % bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from benchmarks.pages.style import (
    COLOURS,
    LINES,
    MARKERS,
    axis_title,
    curve,
    drawn,
    nfe_axis,
    panels,
    styled,
    with_legend,
)
from benchmarks.pages.tables import (
    METRICS,
    Difference,
    Interval,
    Metric,
    column,
    correlations,
    interval,
    pareto_front,
    seconds_of,
    severities,
)
from benchmarks.results import Result
from flashray.metrics import mean_interval


@styled
def cost_figure(results: Sequence[Result]) -> Image.Image:
    """Quality against mean NFE, a row a task; solvers are points (full chains hollow), the rest are lines."""
    tasks, metrics = _tasks(results), _metrics(results)
    solving = [one for one in results if one.cell.method.solver]
    methods = list(dict.fromkeys(one.cell.method.name for one in solving))
    solvers = list(dict.fromkeys(_solver(one) for one in solving))
    baselines = list(dict.fromkeys(one.cell.method.name for one in results if not one.cell.method.solver))
    figure, axes = panels(len(tasks), len(metrics))
    for n, task in enumerate(tasks):
        for m, metric in enumerate(metrics):
            panel = axes[n][m]
            for one in (one for one in results if one.cell.task.name == task):
                name, span = one.cell.method.name, interval(one, metric.name)
                if one.cell.method.solver is None:
                    style = LINES[baselines.index(name) % len(LINES)]
                    panel.axhline(span[0], color="#555555", linestyle=style, linewidth=0.9, label=name)
                    continue
                colour, marker = _of(_solver(one), solvers, COLOURS), _of(name, methods, MARKERS)
                full = one.cell.method.start.mode == "full"
                apart = 1.13 ** (solvers.index(_solver(one)) - (len(solvers) - 1) / 2)  # else they hide each other
                nfe = np.array([apart * max(_mean_nfe(one), 0.5)])
                curve(panel, nfe, [span], name, colour, marker, hollow=full)
            panel.set_xscale("log")
            panel.set_xlim(0.4, 2.5 * max([10.0, *map(_mean_nfe, solving)]))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.set_ylabel(metric.heading)
            if n == len(tasks) - 1:
                panel.set_xlabel("mean NFE (nudged apart)" if len(solvers) > 1 else "mean NFE")
        axes[n][0].set_title(task, loc="left", fontweight="bold")
    return with_legend(figure, axes)


@styled
def severity_figure(results: Sequence[Result]) -> Image.Image:
    """σ̂ and σ̄ against the degradation's level, and against each other; a row a family."""
    bases = list(dict.fromkeys(one.cell.task.base or one.cell.task.name for one in results))
    figure, axes = panels(len(bases), 2, legend=False, row=2.8)
    for n, base in enumerate(bases):
        here = [one for one in results if base in (one.cell.task.base, one.cell.task.name)]
        level, hat, true, name = severities(here)
        left, right = axes[n]
        levels = np.unique(level.round(6))
        for values, label, colour, marker in (
            (true, "σ̄, the true error", COLOURS[6], "s"),
            (hat, "σ̂, predicted", COLOURS[0], "o"),
        ):
            spans = [mean_interval(values[np.isclose(level, one)]) for one in levels]
            curve(left, levels, spans, label, colour, marker)
        left.set_xlabel(axis_title(name))
        left.set_ylabel("std of the latent error ẑ − z₀")
        left.set_title(base, loc="left")
        left.legend()
        points = right.scatter(true, hat, c=level, s=7, cmap="viridis", linewidths=0)
        ends = [min(true.min(), hat.min()) * 0.95, max(true.max(), hat.max()) * 1.05]
        right.plot(ends, ends, color="#888888", linewidth=0.8, linestyle="--")
        right.set(xlim=ends, ylim=ends, xlabel="true error σ̄", ylabel="predicted error σ̂", aspect="equal")
        found = correlations(level, hat, true)
        text = "\n".join(f"{title} {value:.3f}" for title, value in found.items())
        right.text(0.03, 0.97, text, transform=right.transAxes, va="top", fontsize=7)
        bar = figure.colorbar(points, ax=right, fraction=0.04, pad=0.03)
        bar.set_label(axis_title(name), fontsize=7)
        bar.outline.set_visible(False)
    return drawn(figure)


@styled
def adaptivity_figure(results: Sequence[Result], found: Sequence[Difference]) -> Image.Image:
    """Above: quality against mean NFE of flash and fixed starts. Below: their differences on the same images."""
    metrics = _metrics(results)
    starts = sorted((one for one in results if one.cell.method.solver), key=_mean_nfe)
    bases = list(dict.fromkeys(one.cell.method.base for one in results if one.cell.method.solver))
    figure, axes = panels(2 if found else 1, len(metrics))
    for m, metric in enumerate(metrics):
        panel = axes[0][m]
        for base in bases:
            line = [one for one in starts if one.cell.method.base == base]
            spans = [interval(one, metric.name) for one in line]
            colour, marker = _of(base, bases, COLOURS), _of(base, bases, MARKERS)
            curve(panel, np.array([_mean_nfe(one) for one in line]), spans, base, colour, marker, band=True)
        for one in results:
            if one.cell.method.baseline == "autoencoder":
                mean = interval(one, metric.name)[0]
                panel.axhline(mean, color="#555555", linestyle="--", linewidth=0.9, label=one.cell.method.name)
        nfe_axis(panel, [_mean_nfe(one) for one in starts])
        panel.set_ylabel(metric.heading)
        if found:
            _differences_panel(axes[1][m], [one for one in found if one.metric is metric])
    return with_legend(figure, axes)


def _differences_panel(panel: Axes, found: Sequence[Difference]) -> None:
    """Each pair's difference against the mean NFE of its first method."""
    pairs = list(dict.fromkeys(one.bases for one in found))
    for n, pair in enumerate(pairs, start=3):
        line = sorted((one for one in found if one.bases == pair), key=lambda one: one.nfe[0])
        nfe = np.array([one.nfe[0] for one in line])
        colour, marker = COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]
        curve(panel, nfe, [one.interval for one in line], " − ".join(pair), colour, marker)
    panel.axhline(0, color="#555555", linewidth=0.8)
    nfe_axis(panel, [one.nfe[0] for one in found])
    metric = found[0].metric
    panel.set_ylabel(f"difference in {metric.title}\n({'above' if metric.sign > 0 else 'below'} 0 is better)")


@styled
def robustness_figure(results: Sequence[Result]) -> Image.Image:
    """A row an axis that a task was varied along: quality, and how often flash starts fall back to the full chain."""
    groups = {base: [one for one in here if one.cell.task.at] for base, here in by_base(results).items()}
    groups = {base: here for base, here in groups.items() if here}
    metrics = _metrics(results)
    methods = list(dict.fromkeys(one.cell.method.name for one in results))
    figure, axes = panels(len(groups), len(metrics) + 1)
    for n, (base, here) in enumerate(groups.items()):
        axis = next(iter(here[0].cell.task.at))
        here = sorted(here, key=lambda one: _scalar(one.cell.task.at[axis]))
        for method in methods:
            line = [one for one in here if one.cell.method.name == method]
            if not line:
                continue
            x = np.array([_scalar(one.cell.task.at[axis]) for one in line])
            colour, marker = _of(method, methods, COLOURS), _of(method, methods, MARKERS)
            for m, metric in enumerate(metrics):
                curve(axes[n][m], x, [interval(one, metric.name) for one in line], method, colour, marker)
            if line[0].cell.method.solver and line[0].cell.method.start.mode == "flash":
                spans = [_percent(interval(one, "fallback")) for one in line]
                curve(axes[n][-1], x, spans, method, colour, marker)
        axes[n][-1].set_ylim(-4, 104)
        for panel, title in zip(axes[n], [*(metric.heading for metric in metrics), "fall-backs (%)"], strict=True):
            panel.set_ylabel(title)
            panel.set_xlabel(axis_title(axis))
        axes[n][0].set_title(base, loc="left", fontweight="bold")
    return with_legend(figure, axes)


@styled
def ablation_figure(results: Sequence[Result]) -> Image.Image:
    """A row a method: means with intervals, a column a metric and one for the mean NFE."""
    metrics = _metrics(results)
    bases = list(dict.fromkeys(one.cell.method.base for one in results))
    figure, axes = panels(1, len(metrics) + 1, legend=False, row=0.9 + 0.2 * len(results), share_y=True)
    height = np.arange(len(results))[::-1]
    for panel, name in zip(axes[0], [*(metric.name for metric in metrics), "nfe"], strict=True):
        for n, one in enumerate(results):
            mean, low, high = interval(one, name)
            colour, spread = _of(one.cell.method.base, bases, COLOURS), [[mean - low], [high - mean]]
            panel.errorbar(mean, height[n], xerr=spread, fmt="o", color=colour, capsize=2, elinewidth=0.9)
        panel.xaxis.set_major_locator(MaxNLocator(3))
    axes[0][0].set_yticks(height, [one.cell.method.name for one in results])
    for panel, title in zip(axes[0], [*(metric.heading for metric in metrics), "mean NFE"], strict=True):
        panel.set_xlabel(title)
    return drawn(figure)


@styled
def pareto_figure(results: Sequence[Result]) -> Image.Image:
    """Quality against seconds an image, a row a task: every cell a point, the Pareto front a line."""
    tasks, metrics = _tasks(results), _metrics(results)
    bases = list(dict.fromkeys(one.cell.method.base or one.cell.method.name for one in results))
    figure, axes = panels(len(tasks), len(metrics))
    for n, task in enumerate(tasks):
        here = [one for one in results if one.cell.task.name == task]
        for m, metric in enumerate(metrics):
            panel = axes[n][m]
            for one in here:
                name = one.cell.method.base or one.cell.method.name
                seconds, span = np.array([seconds_of(one)]), interval(one, metric.name)
                curve(panel, seconds, [span], name, _of(name, bases, COLOURS), _of(name, bases, MARKERS))
            best = pareto_front(here, metric)
            line = [seconds_of(one) for one in best], [interval(one, metric.name)[0] for one in best]
            panel.step(*line, where="post", color="#555555", linewidth=0.9, zorder=0)
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.set_ylabel(metric.heading)
            if n == len(tasks) - 1:
                panel.set_xlabel("seconds an image")
        axes[n][0].set_title(task, loc="left", fontweight="bold")
    return with_legend(figure, axes)


def by_base(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Cells by the task of the file that they come from."""
    groups: dict[str, list[Result]] = {}
    for one in results:
        groups.setdefault(one.cell.task.base or one.cell.task.name, []).append(one)
    return groups


def _tasks(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(one.cell.task.name for one in results))


def _metrics(results: Sequence[Result]) -> list[Metric]:
    return [one for one in METRICS if any(not np.isnan(column(result, one.name)).all() for result in results)]


def _mean_nfe(result: Result) -> float:
    return float(column(result, "nfe").mean())


def _solver(result: Result) -> str:
    """The solver on its prior: DPS is Latent-DPS on another one."""
    method = result.cell.method
    return f"{method.solver.name} {method.prior or ''}" if method.solver else ""


def _percent(span: Interval) -> Interval:
    return 100 * span[0], 100 * span[1], 100 * span[2]


def _of(name: str, names: Sequence[str], styles: Sequence[str]) -> str:
    return styles[list(names).index(name) % len(styles)]


def _scalar(value: Any) -> float:
    return float(np.mean(value)) if isinstance(value, list | tuple) else float(value)
