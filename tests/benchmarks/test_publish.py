"""docs/results: what is generated is written again, and the words around it stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.pages.results_page import publish
from benchmarks.publish import PublishConfig, publish_outputs
from flashray.errors import ConfigError


def output(folder: Path, name: str, text: str = "a table") -> str:
    """What an experiment leaves, as far as a page needs it."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures" / "cost.png").write_bytes(b"png of " + name.encode())
    (folder / "report.md").write_text(f"# About {name}\n\n![cost](figures/cost.png)\n\n## Part\n\n{text}\n")
    (folder / "table.csv").write_text("a,b\n")
    (folder / "run.json").write_text(json.dumps({"experiment": name}))
    return str(folder)


def test_a_page_an_experiment_with_figures_beside_it_and_tables_below(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "docs" / "results"
    outputs = [output(tmp_path / "a", "severity"), output(tmp_path / "b", "robustness_noise")]
    publish_outputs(PublishConfig(outputs, str(folder)))
    assert capsys.readouterr().out.split() == [str(folder / "severity.md"), str(folder / "robustness-noise.md")]
    text = (folder / "robustness-noise.md").read_text()
    assert text.startswith("# About robustness_noise\n\n<!-- generated")
    assert "![cost](robustness-noise-cost.png)\n\n## Part" in text
    assert "[table.csv](data/robustness-noise-table.csv)" in text
    assert (folder / "robustness-noise-cost.png").read_bytes() == b"png of robustness_noise"
    assert (folder / "data" / "severity-table.csv").read_text() == "a,b\n"


def test_publishing_again_replaces_what_is_generated_and_keeps_the_words(tmp_path: Path) -> None:
    outputs = [output(tmp_path / "a", "severity")]
    (page,) = publish(outputs, tmp_path)
    page.write_text(page.read_text().replace("# About severity", "# Ours\n\nIt holds.").rstrip() + "\n\nSo it holds.\n")
    once = page.read_text()
    publish(outputs, tmp_path)
    assert page.read_text() == once
    publish([output(tmp_path / "a", "severity", "a better table")], tmp_path)
    assert page.read_text() == once.replace("a table", "a better table", 1)


def test_photos_stay_at_home_where_that_is_asked(tmp_path: Path) -> None:
    run, folder = Path(output(tmp_path / "a", "severity")), tmp_path / "results"
    for name in ("outliers", "pictures", "pictures_2"):
        (run / "figures" / f"{name}.png").write_bytes(b"somebody's photo")
    report = (run / "report.md").read_text()
    figures = "\n\n".join(f"![{name}](figures/{name}.png)" for name in ("outliers", "pictures", "pictures_2"))
    (run / "report.md").write_text(f"{report}\n{figures}\n")
    publish([str(run)], folder, photos=False)
    assert {one.name for one in folder.iterdir()} == {"data", "severity-cost.png", "severity.md"}
    assert "outliers" not in (folder / "severity.md").read_text()
    assert "pictures" not in (folder / "severity.md").read_text()
    publish([str(run)], folder)
    assert (folder / "severity-outliers.png").read_bytes() == b"somebody's photo"


def test_what_cannot_be_published_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no report there"):
        publish([str(tmp_path)], tmp_path / "results")
    (page,) = publish([output(tmp_path / "a", "severity")], tmp_path)
    page.write_text(page.read_text().replace("end of what", "end of"))
    with pytest.raises(ConfigError, match="and not <!-- end of what"):
        publish([str(tmp_path / "a")], tmp_path)
