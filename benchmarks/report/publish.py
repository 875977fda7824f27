"""BENCHMARKS.md: the reports of experiments on one page, between words that people write."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Store
from flashray.errors import ConfigError

_SKELETON = """# Benchmarks

What stands between the markers below is written by `jobs/publish.py` from the outputs of `jobs/benchmark.py`; all other
words are by hand, and stay when an experiment is published again.
"""
_TABLES = ("table.csv", "differences.csv")
_PHOTOS = r"(?:pictures|outliers)(?:_\d+)?\.png"  # figures that show the photos themselves


def publish(outputs: Sequence[str], page: Path, assets: Path, photos: bool = True) -> list[str]:
    """Put the reports of these outputs into the page, each in the place of its experiment's last one or at the end.

    Args:
        outputs: what jobs/benchmark.py wrote, folders or s3:// prefixes.
        page: a Markdown file; made where there is none.
        assets: folder for figures and CSV files, named after the experiment.
        photos: whether to publish the figures that show photos.

    Returns:
        The experiments' names.

    Raises:
        ConfigError: names an output without a report; nothing is written then.
    """
    stores = [Store(output) for output in outputs]
    records = [store.read_json("run.json") for store in stores]
    for store, record in zip(stores, records, strict=True):
        if not record or not store.has("report.md"):
            raise ConfigError(f"{store.output}: no report there; run jobs/benchmark.py with this --output first")
    text = page.read_text(encoding="utf-8") if page.is_file() else _SKELETON
    assets.mkdir(parents=True, exist_ok=True)
    for store, record in zip(stores, records, strict=True):
        name = str(record["experiment"])
        text = _placed(text, name, _block(store, name, os.path.relpath(assets, page.parent), assets, photos))
    page.write_text(text, encoding="utf-8")
    return [str(record["experiment"]) for record in records]


def _block(store: Store, name: str, link: str, assets: Path, photos: bool) -> str:
    """The report one heading lower, its figures and tables copied to `assets`."""
    report = store.read("report.md").decode()
    if not photos:
        report = re.sub(rf"!\[[^]]*\]\(figures/{_PHOTOS}\)\n*", "", report)
    for figure in re.findall(r"\(figures/([^)]+)\)", report):
        (assets / f"{name}-{figure}").write_bytes(store.read("figures", figure))
        report = report.replace(f"(figures/{figure})", f"({link}/{name}-{figure})")
    found = [table for table in _TABLES if store.has(table)]
    for table in found:
        (assets / f"{name}-{table}").write_bytes(store.read(table))
    links = ", ".join(f"[{table}]({link}/{name}-{table})" for table in found)
    return re.sub(r"^#", "##", report, flags=re.MULTILINE).rstrip() + f"\n\nAs CSV: {links}.\n"


def _placed(text: str, name: str, block: str) -> str:
    """The text with the block between the experiment's markers."""
    begin, end = f"<!-- experiment {name} -->\n", f"<!-- end of {name} -->\n"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if found and not closed:
        raise ConfigError(f"the page has the marker {begin.strip()} and not {end.strip()}; put it back")
    return f"{head.rstrip()}\n\n{begin}{block}{end}{tail}"
