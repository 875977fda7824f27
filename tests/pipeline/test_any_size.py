"""An archive of photos of many sizes through the job: every size comes back, and what cannot be restored says why."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from flashray import restorer
from flashray.images import encode_png, open_image
from flashray.pipeline import pixel_budget, run
from flashray.pipeline import plan as planning
from flashray.pipeline import solve as solving
from flashray.pipeline.archive import read_archive
from flashray.pipeline.calibrate import Calibrator, sample
from flashray.pipeline.decoding import decode_photos
from flashray.pipeline.load import load
from flashray.pipeline.plan import SeverityActor, chunks
from flashray.pipeline.quarantine import start_quarantine
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.sample_sheet import shrunk
from flashray.pipeline.solve import SolverActor, rows_of
from flashray.pipeline.storage_needed import LOSSY, storage_needed
from flashray.pipeline.units import index
from flashray.pipeline.verify import verify
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.recipe import SolverConfig
from flashray.severity import Start
from tests.pipeline.conftest import planned
from tests.support.image_files import saved, saved_tiff
from tests.support.models import SIDE
from tests.support.runs import MakeConfig, changed, record, restored, summary_of

# (width, height) of the photos that can be restored; the tiny models' windows have 32 pixels
SIZES = {
    "wide.png": (96, 70),
    "one window.png": (SIDE, SIDE),
    "square.jpg": (64, 64),
    "deep/tall.png": (40, 133),
    "dot.png": (1, 1),
    "line.png": (1, 3000),
    "small grey.png": (20, 27),
    "with alpha.png": (50, 33),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, photo: Tensor) -> Path:
    """Photos of many sizes, and a TIFF that holds NaN."""
    folder = tmp_path_factory.mktemp("mixed") / "archive"
    picture = np.asarray(Image.open(io.BytesIO(encode_png(photo))))
    for name, (width, height) in SIZES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.resize(picture, (height, 512, 3))[:, 100 : 100 + width]
        if "grey" in name:
            pixels = pixels[..., 0]
        if "alpha" in name:
            ramp = np.linspace(0, 255, height * width).reshape(height, width, 1).astype(np.uint8)
            pixels = np.concatenate([pixels, ramp], axis=2)
        path.write_bytes(saved(np.ascontiguousarray(pixels), "JPEG" if name.endswith("jpg") else "PNG"))
    broken = np.full((40, 50), 0.5, np.float32)  # Pillow reads no floating-point RGB
    broken[3, 4] = np.nan
    (folder / "nan.tif").write_bytes(saved_tiff(broken, photometric="minisblack"))
    return folder


@pytest.fixture
def config(make: MakeConfig, mixed: Path, tmp_path: Path) -> RunConfig:
    return make(mixed, tmp_path / "run", solver=SolverConfig("proximal", 20), provenance=False)


def worker(config: RunConfig) -> WorkerSettings:
    return WorkerSettings.of(config, "cpu", 1, lpips=False)


def test_every_photo_comes_back_at_its_own_size(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run.solve_units

    def one_unit(*args: Any) -> Iterator[dict[str, Any]]:
        yield next(iter(whole(*args)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "solve_units", one_unit)
        with pytest.raises(KeyboardInterrupt):
            restore_archive(config)
    begun = restored(config.io.output)
    assert restore_archive(config) == 1  # the NaN
    files = restored(config.io.output)
    assert {name: files[name] for name in begun} == begun  # it went on, and did nothing again
    pictures = {name: Image.open(io.BytesIO(data)) for name, data in files.items()}
    assert {name: picture.size for name, picture in pictures.items()} == SIZES
    assert {name: pictures[name].mode for name in ("small grey.png", "with alpha.png")} == {
        "small grey.png": "L",
        "with alpha.png": "RGBA",
    }
    found = summary_of(config.io.output)
    ((failure),) = found["failures"]
    assert failure == {"key": "nan.tif", "error": "the image holds values that are not finite (NaN or infinite)"}
    assert found["restored"] == len(SIZES)
    assert verify(config.io.output).sound
    assert (record(config.io.output) / "contact_sheet.png").is_file()
    scores = {row["key"]: row for row in RunStatus.read(config.io.output).results.to_pylist()}
    assert all(row["psnr"] > 5 and row["estimate_psnr"] > 5 for row in scores.values())
    assert scores["dot.png"]["ssim"] is None
    assert scores["wide.png"]["ssim"] is not None

    for row in RunStatus.read(config.io.output).planned.to_pylist():
        starts = dict(row["starts"])
        assert sum(starts.values()) == row["windows"] == len(row["window_sigma"])
        assert max(starts) == row["start_step"]
        assert row["nfe"] == pytest.approx(sum(step * count for step, count in starts.items()) / row["windows"])
        assert scores[row["key"]]["nfe"] == pytest.approx(row["nfe"])
        assert row["sigma_hat"] == pytest.approx(np.sqrt(np.mean(np.square(row["window_sigma"]))), rel=1e-5)
        assert row["pixels"] >= row["width"] * row["height"]

    other = changed(config, output=str(tmp_path / "other"), slots=5, severity_batch=1, unit_images=1)
    assert restore_archive(other) == 1
    for name, data in restored(other.io.output).items():
        one, two = (open_image(image).pixels for image in (data, files[name]))
        assert (one - two).abs().max() <= 2.01 / 255, name  # a grey level: rounding, and no more


def test_a_photo_of_another_size_than_planned_is_an_error_row(
    config: RunConfig, ray_cluster: None, photo: Tensor
) -> None:
    quarantine, work = start_quarantine(), worker(config)
    plan = planned(work, quarantine)
    plan = plan.filter(pa.compute.equal(plan["key"], "wide.png"))
    (unit,) = load(rows_of(plan, index(plan), work), work, quarantine).to_pylist()
    unit["data"] = [encode_png(photo[:, :33, :40])]
    (solved,) = SolverActor(work, quarantine)(pa.Table.from_pylist([unit])).to_pylist()
    (row,) = solved["rows"]
    assert row["status"] == "error"
    assert "had 96 x 70 pixels when the run was planned, and has now 40 x 33" in row["error"]


def test_both_passes_keep_to_the_budget_of_pixels(
    config: RunConfig, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actors of a machine hold an image's pixels, in locked files, from before it is decoded until it is done."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "shared"))
    monkeypatch.setattr(pixel_budget, "MEGAPIXEL", 1000)
    monkeypatch.setattr(pixel_budget, "machine_memory", lambda: 20 * 1000 * pixel_budget.PIXEL_BYTES)
    monkeypatch.setattr(pixel_budget, "WHOLE_ROWS", 0)  # these images are small, and none counts twice
    held: dict[str, list[tuple[str, int]]] = {"plan": [], "solve": []}

    def locked() -> int:
        count = 0
        for path in pixel_budget.shared_folder().iterdir():
            with open(path, "ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    count += 1
        return count

    for name, module in (("plan", planning), ("solve", solving)):

        def decode(restorer: Any, unit: Any, rows: Any, indices: Any, *rest: Any, name: str = name) -> Any:
            found = decode_photos(restorer, unit, rows, indices, *rest)
            held[name] += [(unit["key"][i], locked()) for i in indices]
            return found

        monkeypatch.setattr(module, "decode_photos", decode)
    quarantine, work = start_quarantine(), worker(config)
    plan, actor = planned(work, quarantine), SolverActor(work, quarantine)
    plan = plan.filter(pa.compute.equal(plan["status"], "ok"))
    units = rows_of(plan, index(plan), work)
    for i in range(len(units)):
        actor(load(units.slice(i, 1), work, quarantine))
    assert ("wide.png", 6) in held["plan"]  # 96 x 70 pixels
    assert ("wide.png", 6) in held["solve"]
    assert locked() == 0


def severity_rows(config: RunConfig) -> dict[str, dict[str, Any]]:
    quarantine, work = start_quarantine(), worker(config)
    actor, todo = SeverityActor(work, quarantine), chunks(read_archive(config).images, 4)
    tables = [actor(load(todo.slice(i, 1), work, quarantine)) for i in range(len(todo))]
    return {row["key"]: row for row in pa.concat_tables(tables).to_pylist()}


def test_a_solver_with_gradients_refuses_large_photos_in_the_plan(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restorer, "GRADIENT_MEGAPIXELS", 0.004)
    rows = severity_rows(changed(config, solver=SolverConfig("latent_dps", 20)))
    error = rows["wide.png"]["error"]
    assert all(word in error for word in ("96 x 70", "latent_dps", "0.004 megapixels", "proximal", "fit: resize"))
    assert rows["one window.png"]["error"] is None
    assert severity_rows(config)["wide.png"]["error"] is None  # proximal keeps none


def test_the_papers_start_refuses_photos_of_several_windows_in_the_plan(config: RunConfig) -> None:
    start = dataclasses.replace(config.recipe.start, formula="paper")
    rows = severity_rows(changed(config, start=start))
    assert "of one window" in rows["wide.png"]["error"]
    assert rows["one window.png"]["error"] is None
    full = severity_rows(changed(config, start=Start(mode="full", formula="paper")))
    assert full["wide.png"]["error"] is None
    assert full["wide.png"]["windows"] > 1
    assert full["wide.png"]["window_sigma"] is None


def test_chunks_are_bounded_by_their_files_bytes(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = read_archive(config).images
    monkeypatch.setattr(planning, "CHUNK_BYTES", 4000)
    sizes = dict(zip(listing["key"].to_pylist(), listing["size"].to_pylist(), strict=True))
    found = chunks(listing, 4)["key"].to_pylist()
    assert [key for chunk in found for key in chunk] == listing["key"].to_pylist()
    assert all(len(chunk) == 1 or sum(sizes[key] for key in chunk[:-1]) <= 4000 for chunk in found)
    assert max(len(chunk) for chunk in found) <= 4


def test_what_a_megapixel_costs_is_measured_on_a_cutting(config: RunConfig, ray_cluster: None) -> None:
    quarantine, work = start_quarantine(), worker(changed(config, slots=3))
    plan = planned(work, quarantine)
    plan = plan.filter(pa.compute.is_valid(plan["unit_id"]))
    unit = sample(plan, work)
    assert unit["key"].to_pylist()[0][0] == "0 line.png"
    calibrator = Calibrator(work, quarantine)
    (loaded,) = load(unit.drop_columns("visits"), work, quarantine).to_pylist()
    small, large = calibrator.cut(loaded, slice(None), 1), calibrator.cut(loaded, slice(1), 3)
    assert max(max(small["height"]), max(small["width"])) <= SIDE
    assert (large["width"], large["height"]) == ([1], [3 * SIDE])
    assert [open_image(data).size for data in small["data"]] == list(zip(small["width"], small["height"], strict=True))
    found = calibrator.measure(unit)
    assert found["window_pixels"] == SIDE * SIDE
    assert min(found[name] for name in ("step_megapixel", "decode_megapixel", "other_megapixel")) >= 0


def test_the_sheet_shrinks_large_photos() -> None:
    x = torch.linspace(-1, 1, 900).expand(3, 600, 900)
    small = shrunk(x, 256)
    assert small.shape == (3, 171, 256)
    assert (small[0, 0].diff() > 0).all()
    assert shrunk(x[:, :200, :256], 256).shape == (3, 200, 256)
    assert shrunk(x[:, :1], 256).shape == (3, 1, 256)


def test_storage_follows_files_and_formats() -> None:
    rows = [{"key": "a.png", "size": 1000}, {"key": "b.JPG", "size": 5}, {"key": "c.jpeg", "size": 10**9}]
    listing = pa.Table.from_pylist(rows)
    planned_rows = pa.table({"key": ["c.jpeg", "a.png", "b.JPG"], "width": [10, 10, 100], "height": [10, 10, 200]})
    assert storage_needed(listing, planned_rows, "same") == 10**9 + 1000 + int(20_000 * LOSSY["jpeg"])
    assert storage_needed(listing, planned_rows, "webp") == int(20_200 * LOSSY["webp"])
    for format in ("same", "png"):  # an image that failed may have left the archive
        assert storage_needed(listing.slice(1), planned_rows, format) < storage_needed(listing, planned_rows, format)
