"""A run with several samples of each image: they belong to the image's commit, and nothing else changes."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from flashray import restorer
from flashray.active_image import Solved
from flashray.engine import solve
from flashray.errors import ConfigError
from flashray.images import decode_spread, encode_png, open_image
from flashray.pipeline.clean import clean
from flashray.pipeline.cost import CostModel, predict
from flashray.pipeline.load import load
from flashray.pipeline.outputs import image_of, sample_names
from flashray.pipeline.plan import write_plan
from flashray.pipeline.quarantine import start_quarantine
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_config import RunConfig, check
from flashray.pipeline.run_folder import PAGE
from flashray.pipeline.run_record import identity, write_record
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.solve import SolverActor, rows_of
from flashray.pipeline.storage_needed import LOSSY, SPREAD, storage_needed
from flashray.pipeline.units import Packing, index
from flashray.pipeline.verify import verify
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.pipeline.workload import Workload
from flashray.pipeline.write import write
from flashray.recipe import SolverConfig
from tests.pipeline.conftest import planned
from tests.support.image_files import saved
from tests.support.models import SIDE
from tests.support.runs import MakeConfig, changed, config_of, record, restored, summary_of
from tests.support.small_runs import KEYS, commit, record_of
from tests.support.small_runs import planned as small_plan

COST = CostModel((1, 4), (1.0, 2.5), 0.5, 2.0, 10.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photo: Tensor) -> Path:
    folder = tmp_path_factory.mktemp("some") / "archive"
    (folder / "deep").mkdir(parents=True)
    for name, width in (("a.png", SIDE), ("deep/b.png", SIDE + 19), ("c.jpg", SIDE)):
        crop = photo[:, 60 : 60 + SIDE, 90 : 90 + width]
        pixels = np.asarray(Image.open(io.BytesIO(encode_png(crop))))
        (folder / name).write_bytes(saved(pixels, "JPEG" if name.endswith("jpg") else "PNG"))
    return folder


@pytest.fixture
def config(make: MakeConfig, photos: Path, tmp_path: Path) -> RunConfig:
    return make(photos, tmp_path / "run", solver=SolverConfig("proximal", 20), provenance=False, samples=3)


def restored_here(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The stages of a run in this process; the commits' rows."""
    quarantine, work = start_quarantine(), WorkerSettings.of(config, "cpu", 1, lpips=False)
    plan, output = planned(work, quarantine), config.io.output
    write_record(output, record_of(len(plan)))
    write_plan(output, 0, plan)
    actor = SolverActor(work, quarantine)
    for n in range(len(index(plan))):
        write(actor(load(rows_of(plan, index(plan), work).slice(n, 1), work, quarantine)), work, quarantine)
    return {row["key"]: row for row in RunStatus.read(output).results.to_pylist()}


def samples_of(output: str | Path) -> dict[str, bytes]:
    """The files of the folder of samples, by their names below the output."""
    files = (path for path in (record(output) / "samples").rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


def test_samples_and_their_spread_belong_to_the_commit(config: RunConfig, ray_cluster: None) -> None:
    rows, output = restored_here(config), Path(config.io.output)
    files = restored(config.io.output)
    assert verify(config.io.output).complete
    assert {file["name"] for row in rows.values() for file in row["samples"]} == set(samples_of(output))
    for key, row in rows.items():
        assert [file["name"] for file in row["samples"]] == sample_names(key, 3)
        images = [open_image(files[key])] + [open_image((output / f["name"]).read_bytes()) for f in row["samples"][:2]]
        assert {image.size for image in images} == {images[0].size}
        assert {image.format for image in images} == {images[0].format}
        if images[0].format == "PNG":
            stack = torch.stack([image.pixels for image in images])
            expected = stack.std(dim=0).square().mean(dim=0).sqrt() * 127.5
            found = decode_spread((output / row["samples"][2]["name"]).read_bytes())
            assert (found - expected.clamp(max=31.875)).abs().max() < 1  # samples were rounded to 8 bits
            assert row["spread"] == pytest.approx(expected.mean().item(), abs=0.5)
    assert any(row["spread"] > 0.1 for row in rows.values())

    # a sample with other bytes, a map that is gone, and a file that nobody wrote
    (output / rows["a.png"]["samples"][0]["name"]).write_bytes(b"other")
    (output / rows["deep/b.png"]["samples"][2]["name"]).unlink()
    (record(output) / "samples" / "who.png").mkdir()
    (record(output) / "samples" / "who.png" / "1.png").write_bytes(b"?")
    found_again = verify(config.io.output)
    assert (found_again.changed, found_again.missing) == (["a.png"], ["deep/b.png"])
    assert found_again.strangers == ["_flashray/samples/who.png/1.png"]


def test_the_image_itself_has_the_bytes_of_a_run_with_one_sample(
    config: RunConfig, ray_cluster: None, tmp_path: Path
) -> None:
    with_samples, alone = restored_here(config), changed(config, output=str(tmp_path / "alone"), samples=1)
    for key, row in restored_here(alone).items():
        assert (row["samples"], row["spread"]) == (None, None)
        assert {name: row[name] for name in ("sha256", "nfe", "psnr")} == {
            name: with_samples[key][name] for name in ("sha256", "nfe", "psnr")
        }
    assert restored(alone.io.output) == restored(config.io.output)
    assert not samples_of(alone.io.output)


def test_a_note_says_which_sample_it_is(config: RunConfig, ray_cluster: None) -> None:
    rows = restored_here(changed(config, provenance=True))
    names = ["a.png", *(file["name"] for file in rows["a.png"]["samples"][:2])]
    texts = [Image.open(Path(config.io.output) / name).text["flashray"] for name in names]  # type: ignore[attr-defined]
    assert [json.loads(text).get("sample") for text in texts] == [None, "1", "2"]


@pytest.mark.slow
def test_a_run_repairs_its_samples_and_forgets_them_with_the_rest(config: RunConfig, tmp_path: Path) -> None:
    assert restore_archive(config) == 0
    output, files = tmp_path / "run", restored(config.io.output)
    assert verify(config.io.output).complete
    rows = RunStatus.read(config.io.output).results.to_pylist()
    assert summary_of(output)["mean_spread"] == pytest.approx(np.mean([row["spread"] for row in rows]))
    assert b">Spread</button>" in (output / PAGE).read_bytes()
    whole = samples_of(output)
    first, second, *_ = whole
    (output / first).write_bytes(b"other")
    (output / second).unlink()
    assert restore_archive(changed(config, verify=True)) == 0
    assert verify(config.io.output).complete
    assert (samples_of(output), restored(output)) == (whole, files)
    with pytest.raises(ConfigError, match=r"io.samples is 3 there and 4 here"):
        restore_archive(changed(config, samples=4))
    assert restore_archive(changed(config, samples=1, overwrite="run")) == 0
    assert not samples_of(output)
    assert restored(output) == files
    assert verify(config.io.output).complete


def test_orphaned_samples_are_cleaned_away(config: RunConfig, tmp_path: Path) -> None:
    """An image that failed after an earlier attempt had put its samples."""
    output = tmp_path / "small"
    write_record(str(output), record_of(4))
    write_plan(str(output), 0, small_plan(KEYS, ["u0", "u0", "u1", "u1"]))
    commit(output, "u0", KEYS[:2], failed=(KEYS[1],))
    lost, pending = (sample_names(name, 2)[0] for name in KEYS[1:3])
    for name in (lost, pending):
        (output / name).parent.mkdir(parents=True)
        (output / name).write_bytes(b"left behind")
    assert [Path(uri).relative_to(output).as_posix() for uri in clean(str(output))] == [lost]
    assert (output / pending).exists()


def test_names_of_samples_cannot_collide() -> None:
    assert sample_names("a/b.jpg", 1) == []
    assert sample_names("a/b.jpg", 3) == [
        f"_flashray/samples/a/b.jpg/{file}" for file in ("1.jpg", "2.jpg", "spread.png")
    ]
    names = ["a.jpg", "a.jpg.png", "1.png", "spread.png", "a/1.jpg", "b.png"]
    files = [file for name in names for file in sample_names(name, 4)]
    assert len(files) == len(set(files))
    assert [image_of(file) for file in files] == [name for name in names for _ in range(4)]
    assert [image_of(name) for name in names] == names


def test_a_sample_that_diverges_is_an_error_of_its_image(
    config: RunConfig, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: Any, **values: Any) -> Any:
        for one in solve(*args, **values):
            yield Solved("a.png", None, one.nfe, 0.0, "diverged", 1) if (one.key, one.sample) == ("a.png", 1) else one

    monkeypatch.setattr(restorer, "solve", breaks)
    rows = restored_here(config)
    assert (rows["a.png"]["status"], rows["a.png"]["error"]) == ("error", "diverged")
    assert {row["status"] for key, row in rows.items() if key != "a.png"} == {"ok"}
    assert "a.png" not in restored(config.io.output)
    assert not [name for name in samples_of(config.io.output) if "a.png" in name]
    assert verify(config.io.output).sound


def test_an_error_midway_keeps_only_images_with_all_samples(
    config: RunConfig, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: Any, **values: Any) -> Any:
        for one in solve(*args, **values):
            if one.sample == 2:
                raise RuntimeError("out of memory")
            yield one

    monkeypatch.setattr(restorer, "solve", breaks)
    assert {row["error"] for row in restored_here(config).values()} == {"RuntimeError: out of memory"}
    assert restored(config.io.output) == samples_of(config.io.output) == {}


def test_samples_count_against_the_limit_of_megapixels(config: RunConfig, ray_cluster: None, photos: Path) -> None:
    quarantine, work = (
        start_quarantine(),
        WorkerSettings.of(changed(config, max_megapixels=0.004), "cpu", 1, lpips=False),
    )
    rows = {row["key"]: row for row in planned(work, quarantine).to_pylist()}
    assert rows["a.png"]["error"] is None
    error = rows["deep/b.png"]["error"]
    assert f"3 samples of {SIDE + 19} x {SIDE} pixels" in error
    assert "take fewer samples, or a higher --max-megapixels" in error


def test_cost_storage_and_units_count_every_sample() -> None:
    load_, first = Workload.of_windows(np.array([3, 3, 2, 1])), np.array([0, 2])
    one = predict(load_, first, 4, 1, COST)
    three = predict(load_, first, 4, 1, dataclasses.replace(COST, samples=3))
    assert three.solver_seconds == pytest.approx(3 * one.solver_seconds)
    assert three.wall_seconds - one.wall_seconds == pytest.approx(2 * one.solver_seconds)  # the encoder runs once
    listing = pa.table({"key": ["a.png", "b.jpg"], "size": [1000, 5]})
    plan = pa.table({"key": ["a.png", "b.jpg"], "width": [10, 100], "height": [10, 200]})
    expected = 3 * (1000 + 20_000 * LOSSY["jpeg"]) + SPREAD * 20_100
    assert storage_needed(listing, plan, "same", 3) == int(expected)
    large = Workload.of_windows(np.full(8, 3), 4 * 2**20)
    assert [Packing(8, 4, 1, n)(large)[1].max() + 1 for n in (1, 2, 4)] == [2, 4, 8]  # 16 megapixels a unit


def test_one_sample_is_the_run_that_it_was() -> None:
    one = identity(config_of(), {})
    assert "io.samples" not in one
    assert identity(config_of(samples=2), {}) == one | {"io.samples": 2}
    with pytest.raises(ConfigError, match="samples is 0"):
        check(config_of(samples=0))
