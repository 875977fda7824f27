"""Pages that are written by hand: photos of every kind of size, and names as bad as names get."""

from __future__ import annotations

import torch
from torch import Tensor

from flashray.report.page import Card, Column, Gallery, Histogram, Page, Picture, Table
from flashray.report.pictures import Map, views

NAMES = [
    "plain.png",
    "<script>alert(1)</script>.png",
    "\"><img src=x onerror='alert(2)'>.jpg",
    'it\'s "quoted" & <b>bold</b>.png',
    "line\nbreak\r\ttab\0null\x1b[31m.png",
    "\u202egnp.exe\u202c \u200f\u2066rtl\u2069.png",
    "separators\u2028\u2029\x85.png",
    "surrogate\udcff.png",
    "<!--sections-->{{x}}${y}\\u0041.png",
    "javascript:alert(3)/http://example.com/" + "long" * 60 + ".png",
    "שלום/🦊 é.png",
]


def photo_pair(height: int, width: int, seed: int = 0, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """(degraded, restored), [3, H, W] in [-1, 1]: colours that change slowly, with and without noise."""
    down, across = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    smooth = torch.stack([down * across, (3 * across).sin().expand(height, width), (2 * down).cos() + 0 * across])
    noisy = smooth + noise * torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    return noisy.clamp(-1, 1), smooth.clamp(-1, 1)


def page_of(names: list[str] = NAMES) -> Page:
    """A page with everything that a page can have; the second picture is a large photo with two maps."""
    pictures = [Picture(name, views(*photo_pair(48, 64, n)), [("σ̂", f"0.{n}")]) for n, name in enumerate(names[:3])]
    severity = torch.zeros(12, 16)
    severity[8:, 12:] = 0.9
    maps = [Map("Severity map", "σ̂ 0", "1", severity), Map("Spread", "0", "16 levels", severity.flip(0))]
    pictures[1] = Picture(names[1], views(*photo_pair(900, 1200, noise=0.02), maps), [("NFE", "3")], maps)
    columns = [
        Column("File"),
        Column("Result"),
        Column("NFE", 0, "denoiser evaluations"),
        Column("Gain", 2, "dB", signed=True),
    ]
    rows: list[list[str | float | None]] = [
        [name, ("restored", "failed")[n % 2], None if n == 1 else float((7 * n) % 11), (-1) ** n * 1.5 * n]
        for n, name in enumerate(names)
    ]
    rows[0][3] = float("inf")
    return Page(
        title=f"Restored: {names[1]}",
        subtitle=names[2],
        cards=[Card("Images", "9 of 10", names[3])],
        remarks=[names[4]],
        galleries=[Gallery("Some", names[5], pictures[:2]), Gallery("More", "", pictures[2:])],
        histogram=Histogram("Start steps", "all", "steps", [0, 2, 4, 6], [3, 0, 1]),
        scores=Table([Column("Mean of"), Column("PSNR", 2)], [["degraded", 20.0], ["restored", 25.0]], "Means."),
        images=Table(columns, rows),
        failures=[(name, f"it is damaged: {name}") for name in names],
        failures_note="They failed.",
        facts=[("io.archive", names[1])],
    )
