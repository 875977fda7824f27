"""The undisturbed run that every disturbed one is held against, and the table of what the faults cost."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.support.fault_harness import IMAGES, ROOT, Job

TABLE = ROOT / "build" / "faults"
Told = Callable[..., None]


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
def table() -> Iterator[Path]:
    """A file a row, so that a fault that is tried alone replaces its own row and no other."""
    TABLE.mkdir(parents=True, exist_ok=True)
    yield TABLE
    rows = [json.loads(path.read_text()) for path in sorted(TABLE.glob("*.json"))]
    if rows:
        TABLE.with_suffix(".md").write_text(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    kinds = ["---" if isinstance(rows[0][name], str) else "---:" for name in names]
    lines = [[name.replace("_", " ") for name in names], kinds, *([str(row[name]) for name in names] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.fixture
def tell(table: Path, undisturbed: Job) -> Told:
    """Adds a row to the table of faults; `than` is the undisturbed run to hold it against, if it is another one."""

    def tell(fault: str, when: str, job: Job, than: Job = undisturbed) -> None:
        cost = dataclasses.asdict(job.cost())
        cost["seconds_added"] = round(cost.pop("seconds") - than.seconds, 1)
        row = {"fault": fault, "when": when} | cost
        (table / (re.sub(r"\W+", "-", f"{fault} {when}") + ".json")).write_text(json.dumps(row) + "\n")

    return tell
