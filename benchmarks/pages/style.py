"""How figures look: matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from PIL import Image

from benchmarks.pages.tables import Floats, Interval

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
}
# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
LINES = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WIDTH = 7.2  # inches
_DPI = 200
# Axes that an experiment may vary, in words and units
AXES = {
    "noise_std": "noise std, scale [0, 1]",
    "blur_std": "blur std (pixels)",
    "std": "blur std (pixels)",
    "believed blur_std": "blur std, believed / true",
    "motion": "length of the camera's path (pixels)",
    "missing": "share of missing pixels",
    "severity": "severity within the family's range",
    "sigma_scale": "factor on σ̂",
    "c": "noise correction c",
}


styled = matplotlib.rc_context(_STYLE)  # decorates what draws a figure


def axis_title(name: str) -> str:
    """What stands at the axis of something that an experiment varies."""
    return AXES.get(name, name.replace("_", " "))


def panels(rows: int, columns: int, legend: bool = True, row: float = 1.8, share_y: bool = False) -> tuple[Figure, Any]:
    """A figure of a page's width with rows × columns panels, each row so many inches high."""
    figure = Figure(figsize=(WIDTH, row * rows + (0.7 if legend else 0.1)), layout="constrained", dpi=_DPI)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=share_y)


def curve(
    panel: Axes,
    x: Floats,
    spans: Sequence[Interval],
    label: str,
    colour: str,
    marker: str,
    band: bool = False,
    hollow: bool = False,
) -> None:
    """Means joined by a line, their intervals as a band or as bars."""
    mean, low, high = (np.array(part) for part in zip(*spans, strict=True))
    if band:
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.plot(x, mean, color=colour, marker=marker, label=label)
    else:
        face = "white" if hollow else colour
        bars: dict[str, Any] = {"capsize": 2, "elinewidth": 0.8, "markerfacecolor": face, "markeredgewidth": 0.9}
        errors = np.stack([mean - low, high - mean])
        panel.errorbar(x, mean, errors, None, color=colour, marker=marker, label=label, **bars)


def nfe_axis(panel: Axes, nfe: Sequence[float]) -> None:
    """Logarithmic, with a tick at each point."""
    panel.set_xscale("log")
    ticks = sorted({round(max(one, 0.5), 1) if one < 10 else round(one) for one in nfe})
    apart = [one for n, one in enumerate(ticks) if n == 0 or one / ticks[n - 1] > 1.25]
    panel.xaxis.set_major_locator(FixedLocator(apart))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("mean NFE")


def with_legend(figure: Figure, axes: Any) -> Image.Image:
    """One legend for all panels, below them."""
    found: dict[str, Any] = {}
    for panel in axes.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=max(1, min(len(found), int(WIDTH / (0.5 + 0.06 * max(map(len, found)))))),
        fontsize=7.5,
        frameon=False,
    )
    return drawn(figure)


def drawn(figure: Figure) -> Image.Image:
    """The figure as a picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
