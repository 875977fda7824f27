"""The undisturbed run that every disturbed one is held against, and the table of what the faults cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flashray.images import encode_png
from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.faults.harness import ROOT, Job
from tests.models import SIDE

IMAGES = 24
TABLE = ROOT / "build" / "faults"
Told = Callable[..., None]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, photo: torch.Tensor) -> Path:
    """Crops of a photo; read only."""
    folder = tmp_path_factory.mktemp("faults") / "photos"
    folder.mkdir()
    for i in range(IMAGES):
        (folder / f"{i:02d}.png").write_bytes(encode_png(photo[:, 18 * i : 18 * i + SIDE, 200 : 200 + SIDE]))
    return folder


@pytest.fixture(scope="session")
def undisturbed(tiny_models: TinyModels, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(tiny_models, str(photos), str(folder / "run"), folder / "notes")
    assert job.run() == 0, job.said
    assert job.verified() == Verified(images=IMAGES, restored=IMAGES)
    assert sorted(job.reached("solve")) == sorted(path.name for path in photos.iterdir())
    return job


@pytest.fixture
def job(tiny_models: TinyModels, photos: Path, tmp_path: Path) -> Job:
    """The same, to be disturbed."""
    return Job(tiny_models, str(photos), str(tmp_path / "run"), tmp_path / "notes")


@pytest.fixture(scope="session")
def table() -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    yield rows
    if rows:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")
        TABLE.with_suffix(".md").write_text(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.fixture
def tell(table: list[dict[str, Any]], undisturbed: Job) -> Told:
    """Adds a row to the table of faults."""

    def tell(fault: str, when: str, job: Job) -> None:
        cost = dataclasses.asdict(job.cost())
        cost["seconds_added"] = round(cost.pop("seconds") - undisturbed.seconds, 1)
        table.append({"fault": fault, "when": when} | cost)

    return tell
