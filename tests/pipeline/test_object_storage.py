"""A whole run from and to a real S3 server: object storage is only another URI."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashray import storage
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_status import RunStatus
from tests.conftest import TinyModels
from tests.support.fault_harness import PLAIN_RECIPE
from tests.support.runs import restored, summary_of
from tests.support.seaweedfs import SECRET

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ray_files() -> Iterator[Path]:
    """A folder for Ray's own files; names of sockets are short, so pytest's will not do."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_run_on_s3(s3: str, archive: Path, tiny_models: TinyModels, tmp_path: Path, ray_files: Path) -> None:
    for path in archive.rglob("*.*"):
        storage.put_bytes(storage.join(s3, "archive", path.relative_to(archive).as_posix()), path.read_bytes())
    output = f"{s3}/run"
    settings = {
        "archive": f"{s3}/archive",
        "output": output,
        "recipe": PLAIN_RECIPE,
        "measurement": "simulated",
        "prior": tiny_models.prior,
        "start.severity_encoder": tiny_models.encoder,
        "solver.steps": 20,
        "metrics": "[psnr]",
        "unit_images": 4,
        "tracking.tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
    }
    command = [sys.executable, str(ROOT / "jobs" / "reconstruct.py"), *(f"--{k}={v}" for k, v in settings.items())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(ray_files)}
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert first.returncode == 0, first.stderr
    rows = RunStatus.read(output).results.to_pylist()
    assert len(rows) == 10
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in restored(output).items()}
    assert hashes == {row["key"]: row["sha256"] for row in rows}
    assert summary_of(output)["restored"] == 10
    assert storage.exists(run_uri(output, "contact_sheet.png"))
    assert b"10 of 10" in storage.read_bytes(storage.join(output, "report.html"))
    files = storage.list_files(output)
    assert "_flashray/run.json" in {entry.key for entry in files}
    for entry in files:
        assert SECRET.encode() not in storage.read_bytes(storage.join(output, entry.key)), entry.key
    # nor what was said, what MLflow keeps, and what Ray's processes wrote down
    assert SECRET not in first.stdout + first.stderr
    written = [path for root in (tmp_path, ray_files) for path in root.rglob("*") if path.is_file()]
    assert {path.suffix for path in written} >= {".db", ".log", ".out", ".err"}
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
