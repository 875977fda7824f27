"""BENCHMARKS.md: blocks that are written again, between words that stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report.publish import publish
from flashray.errors import ConfigError


def output(folder: Path, name: str, text: str = "a table") -> str:
    """What jobs/benchmark.py leaves, as far as the page needs it."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures" / "cost.png").write_bytes(b"png of " + name.encode())
    (folder / "report.md").write_text(f"# {name}\n\n![cost](figures/cost.png)\n\n## Part\n\n{text}\n")
    (folder / "table.csv").write_text("a,b\n")
    (folder / "run.json").write_text(json.dumps({"experiment": name}))
    return str(folder)


def test_a_page_is_made_with_figures_and_tables_beside_it(tmp_path: Path) -> None:
    page, assets = tmp_path / "BENCHMARKS.md", tmp_path / "docs" / "benchmarks"
    assert publish([output(tmp_path / "a", "severity"), output(tmp_path / "b", "starts")], page, assets) == [
        "severity",
        "starts",
    ]
    text = page.read_text()
    assert "## severity\n\n![cost](docs/benchmarks/severity-cost.png)\n\n### Part" in text
    assert (assets / "starts-cost.png").read_bytes() == b"png of starts"
    assert (assets / "severity-table.csv").read_text() == "a,b\n"
    assert text.index("severity") < text.index("starts")


def test_publishing_again_replaces_the_block_and_keeps_the_words(tmp_path: Path) -> None:
    page, assets = tmp_path / "BENCHMARKS.md", tmp_path / "assets"
    outputs = [output(tmp_path / "a", "severity"), output(tmp_path / "b", "starts")]
    publish(outputs, page, assets)
    page.write_text(page.read_text().replace("# Benchmarks", "# Ours").rstrip() + "\n\nSo it holds.\n")
    once = page.read_text()
    publish(outputs, page, assets)
    assert page.read_text() == once
    publish([output(tmp_path / "a", "severity", "a better table")], page, assets)
    assert page.read_text() == once.replace("a table", "a better table", 1)


def test_photos_stay_at_home_where_that_is_asked(tmp_path: Path) -> None:
    page, assets = tmp_path / "BENCHMARKS.md", tmp_path / "assets"
    place = Path(output(tmp_path / "a", "severity"))
    for name in ("outliers", "pictures", "pictures_2"):
        (place / "figures" / f"{name}.png").write_bytes(b"somebody's photo")
    report = (place / "report.md").read_text()
    (place / "report.md").write_text(
        f"![outliers](figures/outliers.png)\n\n{report}\n![pictures](figures/pictures.png)\n\n![pictures_2](figures/pictures_2.png)\n"
    )
    publish([str(place)], page, assets, photos=False)
    assert {one.name for one in assets.iterdir()} == {"severity-cost.png", "severity-table.csv"}
    assert "outliers" not in page.read_text()
    assert "pictures" not in page.read_text()
    publish([str(place)], page, assets)
    assert (assets / "severity-outliers.png").read_bytes() == b"somebody's photo"


def test_what_cannot_be_published_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no report there"):
        publish([str(tmp_path)], tmp_path / "page.md", tmp_path / "assets")
    page = tmp_path / "page.md"
    page.write_text("<!-- experiment severity -->\ncut off\n")
    with pytest.raises(ConfigError, match="end of severity"):
        publish([output(tmp_path / "a", "severity")], page, tmp_path / "assets")
