"""A run as one HTML page that holds everything it shows: it opens from a disk, an object store or as an artifact.

Every text is escaped here, in one place: names of files and messages of errors may hold anything. The page's script
moves sliders and sorts rows; its policy forbids every other script, and every request.
"""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib import resources

from flashray.report.pictures import Map, View
from flashray.shown import shown

NARROW = 320  # pixels; the frame of a wider photo takes two columns
LONGEST = 160  # characters of a text in the table or below a picture


@dataclass(frozen=True)
class Card:
    """A figure of the run: its name, the value as text, and one line below it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Picture:
    """A photo before and after, with facts such as ("σ̂", "0.31"), and the maps that its views have."""

    key: str
    views: Sequence[View]
    facts: Sequence[tuple[str, str]] = ()
    maps: Sequence[Map] = ()


@dataclass(frozen=True)
class Gallery:
    """Pictures under a title, and a sentence that says how they were chosen."""

    title: str
    note: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    name: str
    digits: int | None = None  # decimals of its numbers; None for texts
    explained: str = ""  # what it means, in a few words
    signed: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers, None where there is no value; the first column holds keys."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str | float | None]]
    note: str = ""


@dataclass(frozen=True)
class Histogram:
    """Counts between edges, one edge more than counts; a sentence says what was counted."""

    title: str
    note: str
    unit: str
    edges: Sequence[int]
    counts: Sequence[int]


@dataclass(frozen=True)
class Page:
    """What a page shows, from its top to its bottom."""

    title: str
    subtitle: str
    cards: Sequence[Card]
    remarks: Sequence[str] = ()  # sentences below the cards
    galleries: Sequence[Gallery] = ()
    histogram: Histogram | None = None
    scores: Table | None = None  # means over all images, one row a stage
    images: Table | None = None  # one row an image
    failures: Sequence[tuple[str, str]] = ()  # (key, reason)
    failures_note: str = ""
    facts: Sequence[tuple[str, str]] = ()  # settings of the run, by their names


def render(page: Page) -> bytes:
    """The page as UTF-8; equal content gives equal bytes."""
    template = (resources.files("flashray.report") / "page.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"
    )
    number = {picture.key: n for n, picture in enumerate(one for g in page.galleries for one in g.pictures)}
    sections = [
        *(
            _section("pictures" if n == 0 else "", g.title, g.note, _gallery(g, number))
            for n, g in enumerate(page.galleries)
        ),
        _figures(page),
        _images(page, number),
        _failures(page),
        _facts(page),
    ]
    parts = {
        "policy": escape(policy),
        "title": text(page.title),
        "subtitle": text(page.subtitle, 400),
        "cards": "\n".join(map(_card, page.cards)),
        "remarks": "".join(f"<p>{text(one, 400)}</p>" for one in page.remarks),
        "links": _links(page),
        "sections": "\n".join(section for section in sections if section),
    }
    return re.sub(r"<!--(\w+)-->", lambda found: parts[found[1]], template).encode()


def readable(value: str, most: int = LONGEST) -> str:
    """A text as `shown`, cut in its middle where it is longer than `most`."""
    seen = shown(value)
    head = most * 2 // 3
    return seen if len(seen) <= most else f"{seen[:head]} … {seen[head - most :]}"


def text(value: str, most: int = LONGEST) -> str:
    """`readable`, escaped for HTML, between tags and in quoted attributes."""
    return escape(readable(value, most), quote=True)


def _name(key: str) -> str:
    """A key in the text; its own direction of writing stays inside it."""
    full = readable(key, 3 * LONGEST)
    cut = f' title="{escape(full)}"' if full != readable(key) else ""
    return f"<bdi{cut}>{text(key)}</bdi>"


def _section(anchor: str, title: str, note: str, content: str) -> str:
    mark = f' id="{anchor}"' if anchor else ""
    said = f'<p class="note">{text(note, 400)}</p>' if note else ""
    return f"<section{mark}><h2>{text(title)}</h2>{said}{content}</section>"


def _card(card: Card) -> str:
    return f"<div><dt>{text(card.name)}</dt><dd>{text(card.value)}<small>{text(card.detail)}</small></dd></div>"


def _gallery(gallery: Gallery, number: dict[str, int]) -> str:
    pictures = "\n".join(_picture(one, number[one.key]) for one in gallery.pictures)
    return f'<div class="gallery">{pictures}</div>'


def _picture(picture: Picture, number: int) -> str:
    """A figure: its views under sliders, its name and facts, and switches where it has several views or maps."""
    name = f"p{number}"
    layers = "".join(_view(view, picture, n, name) for n, view in enumerate(picture.views))
    switches = ""
    if len(picture.views) > 1:
        switches += "".join(
            f'<button type="button" class="switch" data-view="{n}" aria-pressed="{pressed}">{label}</button>'
            for n, (label, pressed) in enumerate((("Whole photo", "true"), ("Full resolution", "false")))
        )
    for n, one in enumerate(picture.maps):
        switches += (
            f'<button type="button" class="switch" data-map="{n}" aria-pressed="false">{text(one.name)}</button>'
        )
        switches += f'<span class="legend" data-map="{n}" hidden>{text(one.low)} <i></i> {text(one.high)}</span>'
    switches = f'<div class="switches">{switches}</div>' if switches else ""
    facts = "".join(f"<span>{text(what)} <b>{text(value)}</b></span>" for what, value in picture.facts)
    return (
        f'<figure id="{name}" class="picture{" large" if picture.views[0].width > NARROW else ""}">{layers}'
        f'<figcaption>{_name(picture.key)}<div class="facts">{facts}</div>{switches}</figcaption></figure>'
    )


def _view(view: View, picture: Picture, number: int, name: str) -> str:
    size = f'width="{view.width}" height="{view.height}"'
    label = text(f"Border between degraded (left) and restored (right) of {picture.key}", 2 * LONGEST)
    overlay = "".join(f'<img class="map" alt="" data-map="{n}" hidden src="{uri}">' for n, uri in enumerate(view.maps))
    others = [other for other in picture.views if other.full and other is not view]
    frame = ""
    if others and not view.full:
        left, top, width, height = (f"{100 * share:.2f}%" for share in others[0].part)
        frame = f'<i class="frame" style="left:{left};top:{top};width:{width};height:{height}"></i>'
    small = " small" if max(view.width, view.height) <= 256 else ""
    return (
        f'<div class="compare{small}" style="--ratio:{view.width}/{view.height};--width:{view.width}px"'
        f"{' hidden' if number else ''}>"
        f'<img {size} alt="degraded" src="{view.before}"><img {size} class="after" alt="restored" src="{view.after}">'
        f'{overlay}{frame}<i class="edge"></i><span class="tag left">degraded</span>'
        '<span class="tag right">restored</span>'
        f'<input type="range" min="0" max="100" step="1" value="50" autocomplete="off" aria-label="{label}"></div>'
    )


def _figures(page: Page) -> str:
    """The means and the histogram, side by side where there is room."""
    parts = []
    if page.scores is not None:
        parts.append(f"<div><h2>Quality</h2>{_note(page.scores.note)}{_plain_table(page.scores)}</div>")
    if page.histogram is not None:
        chart = page.histogram
        parts.append(f"<div><h2>{text(chart.title)}</h2>{_note(chart.note)}{_bars(chart)}</div>")
    return f'<section id="figures" class="columns">{"".join(parts)}</section>' if parts else ""


def _note(note: str) -> str:
    return f'<p class="note">{text(note, 400)}</p>' if note else ""


def _bars(chart: Histogram) -> str:
    """Bars as SVG, with counts above them and the numbers that they cover below."""
    width, height, most = 440, 130, max(chart.counts, default=0) or 1
    step = width / max(len(chart.counts), 1)
    bars, ends = [], list(zip(chart.edges, chart.edges[1:], strict=False))
    every = -(-len(ends) // 12)  # labels that have room
    for n, (count, (low, high)) in enumerate(zip(chart.counts, ends, strict=True)):
        span = f"{low:,}" if high - low <= 1 else f"{low:,}–{high - 1:,}"
        tall, middle = height * count / most, (n + 0.5) * step
        bars.append(
            f'<g><title>{span} {text(chart.unit)}: {count:,}</title><rect x="{n * step + 1:.1f}" '
            f'y="{height - tall + 20:.1f}" width="{step - 2:.1f}" height="{tall:.1f}"/>'
        )
        if count:
            bars.append(f'<text x="{middle:.1f}" y="{height - tall + 14:.1f}">{count:,}</text>')
        if n % every == 0:
            bars.append(f'<text class="low" x="{middle:.1f}" y="{height + 38}">{span}</text>')
        bars.append("</g>")
    said = text(f"{chart.title}: {chart.note}", 400)
    return f'<svg class="bars" viewBox="0 0 {width} {height + 46}" role="img" aria-label="{said}">{"".join(bars)}</svg>'


def _plain_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{text(column.name)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{_cells(table.columns, row, {})}</tr>" for row in table.rows)
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _links(page: Page) -> str:
    """Links to the parts that the page has."""
    parts = {
        "pictures": page.galleries,
        "figures": page.scores or page.histogram,
        "images": page.images,
        "failures": page.failures,
    }
    return "".join(f'<a href="#{part}">{part.capitalize()}</a>' for part, there in parts.items() if there)


def _images(page: Page, number: dict[str, int]) -> str:
    """The table of images: its headers are buttons that sort it."""
    table = page.images
    if table is None:
        return ""
    head = "".join(
        f'<th scope="col" aria-sort="none"{"" if one.digits is None else " data-number"}>'
        f'<button type="button" title="{text(one.explained or one.name)}">{text(one.name)}</button></th>'
        for one in table.columns
    )
    rows = "\n".join(f"<tr>{_cells(table.columns, row, number)}</tr>" for row in table.rows)
    content = (
        '<div class="scroll tall" role="region" tabindex="0" aria-label="Images"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="said" role="status"></p>'
    )
    return _section("images", "Images", table.note, content)


def _cells(columns: Sequence[Column], row: Sequence[str | float | None], number: dict[str, int]) -> str:
    """The cells of a row; numbers are sorted by `data-v`, texts as they are shown."""
    cells = []
    for n, (column, value) in enumerate(zip(columns, row, strict=True)):
        if n == 0:
            key = str(value)
            name = _name(key)
            linked = f'<a href="#p{number[key]}">{name}</a>' if key in number else name
            cells.append(f'<th scope="row">{linked}</th>')
        elif isinstance(value, str):
            cells.append(f"<td>{text(value)}</td>")
        elif value is None or math.isnan(value):
            kind = "" if column.digits is None else ' class="n"'
            cells.append(f'<td{kind} data-v="">–</td>')
        else:
            said = f"{value:{'+' if column.signed else ''},.{column.digits or 0}f}".replace("inf", "∞")
            cells.append(f'<td class="n" data-v="{str(float(value)).replace("inf", "Infinity")}">{said}</td>')
    return "".join(cells)


def _failures(page: Page) -> str:
    if not page.failures:
        return ""
    items = "".join(f"<li>{_name(key)}<p>{text(reason, 400)}</p></li>" for key, reason in page.failures)
    return _section("failures", "Failures", page.failures_note, f'<ul class="failures">{items}</ul>')


def _facts(page: Page) -> str:
    if not page.facts:
        return ""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value, 400)}</dd>" for name, value in page.facts)
    return f'<details><summary>Settings of the run</summary><dl class="settings">{rows}</dl></details>'
