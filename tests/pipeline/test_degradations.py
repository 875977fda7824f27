"""Every family through the job's own stages; masks and smaller measurements of observed archives."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image
from torch import Tensor

from flashray.degradations import make_degradation
from flashray.errors import ConfigError
from flashray.images import encode_png, from_uint16, open_image
from flashray.measurement import Frame, Measurer
from flashray.pipeline import load as loading
from flashray.pipeline import plan as planning
from flashray.pipeline import solve as solving
from flashray.pipeline.archive import read_archive
from flashray.pipeline.attempt_markers import Past
from flashray.pipeline.calibrate import Calibrator
from flashray.pipeline.decoding import decode_photos
from flashray.pipeline.models import load_models
from flashray.pipeline.quarantine import Watch, unnoted
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_config import RunConfig, check
from flashray.pipeline.sample_sheet import row_of_sheet
from flashray.pipeline.units import index
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.recipe import DegradationConfig, SolverConfig
from flashray.severity import Start
from flashray.storage import put_bytes
from flashray.tracking.tracking_config import TrackingConfig
from tests.conftest import TinyModels
from tests.support.image_files import colour_photo, deep, grey_photo, saved, saved_tiff, soft_alpha
from tests.support.models import SIDE
from tests.support.profiles import display_p3
from tests.support.runs import config_of, record

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("random_inpainting", {}),
    ("box_inpainting", {"side": [4, 16]}),
    ("motion_blur", {"length": [1, 10], "kernel_size": 15}),
    ("super_resolution", {"scale": 2}),
    ("nonlinear_blur", {}),
    ("jpeg", {}),
]


@dataclass(frozen=True)
class Stages:
    """What the stages of both passes make of an archive: the plan's rows, and the commits' by key."""

    plan: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, Any]]
    images: dict[str, Tensor]


Run = Callable[[RunConfig], Stages]


@pytest.fixture
def through_the_stages(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The very load, severity and solve stages of the job, called one after the other in this process, without Ray."""
    for module in (loading, planning, solving):
        monkeypatch.setattr(module, "watched", lambda *_: nullcontext(Watch(None, "a test", Past(), unnoted)))
    quarantine = MagicMock()

    def run(config: RunConfig) -> Stages:
        work = WorkerSettings.of(config, "cpu", 1, lpips=False)
        severity, todo = planning.SeverityActor(work, quarantine), planning.chunks(read_archive(config).images, 4)
        found = [severity(loading.load(todo.slice(i, 1), work, quarantine)) for i in range(len(todo))]
        plan = planning.finish_plan(pa.concat_tables(found), severity.restorer.schedule, config, attempt=0)
        planned = plan.filter(pc.equal(plan["status"], "ok"))
        units, rows, images = solving.rows_of(planned, index(planned), work), {}, {}
        solver = solving.SolverActor(work, quarantine)
        for i in range(len(units)):
            (unit,) = solver(loading.load(units.slice(i, 1), work, quarantine)).to_pylist()
            for row, image in zip(unit["rows"], unit["images"], strict=True):
                rows[row["key"]] = row
                pixels = np.frombuffer(image["pixels"], np.uint16).reshape(image["height"], image["width"], 3)
                images[row["key"]] = from_uint16(torch.from_numpy(pixels.astype(np.int32))).permute(2, 0, 1)
        return Stages({row["key"]: row for row in plan.to_pylist()}, rows, images)

    return run


def config(models: TinyModels, archive: Path, output: Path, **values: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "measurement": "simulated",
        "prior": models.prior,
        "start": Start(severity_encoder=models.encoder),
        "solver": SolverConfig(steps=20, settings={"dc_step": 0.1}),
        "metrics": ["psnr"],
        "slots": 3,
        "severity_batch": 4,
        "tracking": TrackingConfig(enabled=False),
    }
    return check(config_of(str(archive), str(output), **settings | values))


@pytest.mark.parametrize(("name", "settings"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_simulated_measurements_of_every_family(
    name: str, settings: dict[str, Any], tiny_models: TinyModels, archive: Path, tmp_path: Path, through_the_stages: Run
) -> None:
    family = make_degradation(name, settings)
    asked = config(
        *(tiny_models, archive, tmp_path / "run"),
        degradation=DegradationConfig(name, settings),
        solver=SolverConfig("psld" if family.linear else "latent_dps", steps=20, settings={"dc_step": 0.1}),
        limit=3,
    )
    done = through_the_stages(asked)
    assert len(done.plan) == len(done.images) == 3
    for key, row in done.rows.items():
        assert (row["status"], row["error"]) == ("ok", None)
        assert row["measurement_psnr"] > 5
        assert row["sigma_true"] > 0
        assert set(json.loads(done.plan[key]["parameters"])) == set(family.parameter_names)
    if family.parameter_names:
        assert len({row["parameters"] for row in done.plan.values()}) == 3


def simulate_archive(folder: Path, archive: Path, name: str, settings: dict[str, Any], noise_std: float = 0.0) -> None:
    """The archive's images as PNGs of their measurements below `folder`/images, with their masks in `folder`/masks."""
    measurer = Measurer(make_degradation(name, settings), (noise_std, noise_std), simulated=True)
    (folder / "masks").mkdir(parents=True)
    (folder / "images").mkdir()
    lines = ["key,mask"]
    for path in sorted(archive.glob("*.png")):
        measured = measurer.measure([measurer.photo(path.name, open_image(path.read_bytes()).pixels)])
        (folder / "images" / path.name).write_bytes(encode_png(measured.y_BCHW[0]))
        if measurer.degradation.takes_mask:
            white = measured.operator.mask_B1HW[0].expand(3, -1, -1) * 2 - 1  # type: ignore[attr-defined]
            (folder / "masks" / path.name).write_bytes(encode_png(white))
            lines.append(f"{path.name},masks/{path.name}")
    (folder / "manifest.csv").write_text("\n".join(lines))


def test_observed_images_with_masks(
    tiny_models: TinyModels, archive: Path, tmp_path: Path, through_the_stages: Run
) -> None:
    """Masks beside the manifest, and what is wrong with single ones."""
    simulate_archive(tmp_path, archive, "random_inpainting", {"missing": [0.2, 0.6]})
    Image.new("RGB", (SIDE, 2 * SIDE), "white").save(tmp_path / "masks" / "crop 1.png")
    (tmp_path / "masks" / "crop 2.png").unlink()
    manifest = (tmp_path / "manifest.csv").read_text().replace("masks/crop 3.png", "")
    (tmp_path / "manifest.csv").write_text(manifest)
    asked = masked(tiny_models, archive, tmp_path, limit=5)
    done = through_the_stages(asked)
    assert [done.plan[f"crop {i}.png"]["status"] for i in range(5)] == ["ok", "error", "error", "error", "ok"]
    assert f"{SIDE} x {2 * SIDE} pixels, and the image {SIDE} x {SIDE}" in done.plan["crop 1.png"]["error"]
    assert "masks/crop 2.png cannot be read" in done.plan["crop 2.png"]["error"]
    assert "does not give its mask" in done.plan["crop 3.png"]["error"]
    assert json.loads(done.plan["crop 0.png"]["parameters"]) == {"mask": str(tmp_path / "masks" / "crop 0.png")}
    assert set(done.images) == {"crop 0.png", "crop 4.png"}
    assert all(row["measurement_psnr"] < 25 for row in done.rows.values())  # against the reference, holes and all


def test_images_of_one_batch_are_measured_by_their_own_parameters(
    tiny_models: TinyModels, archive: Path, tmp_path: Path
) -> None:
    """Some have a mask, and some what the recipe fixes."""
    family = DegradationConfig("random_inpainting", {"missing": [0.5, 0.5], "paper": True})
    asked = config(tiny_models, archive, tmp_path / "run", measurement="observed", degradation=family)
    restorer = WorkerSettings.of(asked, "cpu", 1, lpips=False).restorer()
    mask = np.full((SIDE, SIDE, 3), 255, np.uint8)
    mask[:5] = 0
    given = [None, json.dumps({"mask": "a.png"}), None, json.dumps({"mask": "a.png"})]
    unit = {
        "key": [f"{n}.png" for n in range(4)],
        "data": [(archive / f"crop {n}.png").read_bytes() for n in range(4)],
        "given": given,
        "noise_std": [None] * 4,
        "mask_data": [one and saved(mask) for one in given],
    }
    rows: list[dict[str, Any]] = [{} for _ in given]
    found = decode_photos(restorer, unit, rows, range(4), "given", asked.io)
    assert rows == [{}] * 4
    assert [indices for _, indices in found] == [[0, 2], [1, 3]]
    for (photos, _), share in zip(found, (0.5, 27 / 32), strict=True):
        known = restorer.measure(photos).operator.mask_B1HW  # type: ignore[attr-defined]
        assert known.mean(dim=(1, 2, 3)).tolist() == [share, share]


def masked(models: TinyModels, archive: Path, tmp_path: Path, **values: Any) -> RunConfig:
    """A run on what `simulate_archive` has made."""
    return config(
        *(models, tmp_path / "images", tmp_path / "run"),
        measurement="observed",
        manifest=str(tmp_path / "manifest.csv"),
        references=str(archive),
        degradation=DegradationConfig("random_inpainting"),
        **values,
    )


def test_a_whole_run_with_masks(tiny_models: TinyModels, archive: Path, tmp_path: Path, ray_cluster: None) -> None:
    simulate_archive(tmp_path, archive, "random_inpainting", {"missing": [0.2, 0.6]})
    asked = masked(tiny_models, archive, tmp_path, limit=2, solver=SolverConfig(steps=2, settings={"dc_step": 0.1}))
    assert restore_archive(asked) == 0
    assert Image.open(record(asked.io.output) / "contact_sheet.png").width > 3 * SIDE
    before = (record(asked.io.output) / "summary.json").read_bytes()
    assert restore_archive(asked) == 0
    assert (record(asked.io.output) / "summary.json").read_bytes() == before


def test_smaller_measurements_are_not_resized(
    tiny_models: TinyModels, archive: Path, tmp_path: Path, through_the_stages: Run
) -> None:
    simulate_archive(tmp_path, archive, "super_resolution", {"scale": 2})
    Image.new("RGB", (20, 18)).save(tmp_path / "images" / "crop 1.png")
    asked = config(
        *(tiny_models, tmp_path / "images", tmp_path / "run"),
        measurement="observed",
        references=str(archive),
        degradation=DegradationConfig("super_resolution", {"scale": 2}),
        fit="resize",
        limit=3,
    )
    done = through_the_stages(asked)
    assert (done.plan["crop 0.png"]["status"], done.plan["crop 0.png"]["width"]) == ("ok", SIDE // 2)
    assert "20 x 18 pixels, not 16 x 16, and cannot be resized" in done.plan["crop 1.png"]["error"]
    assert set(done.images) == {"crop 0.png", "crop 2.png"}
    assert all(row["measurement_psnr"] > 15 for row in done.rows.values())  # enlarged, against the reference
    cut = Frame.of_measurements(asked.recipe.degradation.make(), SIDE, "crop")
    assert cut.take(open_image((tmp_path / "images" / "crop 1.png").read_bytes()).pixels).shape == (3, 16, 16)

    put_bytes(f"{asked.io.output}/crop 0.png", encode_png(done.images["crop 0.png"]))
    restorer = WorkerSettings.of(asked, "cpu", 1, lpips=False).restorer()
    sheet_row = row_of_sheet(restorer, asked.io, done.plan["crop 0.png"], done.rows["crop 0.png"])
    assert sheet_row is not None
    assert [None if image is None else tuple(image.shape) for image in sheet_row[1]] == [(3, SIDE, SIDE)] * 4


def test_files_of_many_kinds_and_a_limit_of_megapixels(
    tiny_models: TinyModels, tmp_path: Path, through_the_stages: Run
) -> None:
    """Colour profiles, alpha and 16 bits reach the actors; what is beyond the limit has a row that names it."""
    (tmp_path / "archive").mkdir()
    files = {
        "wide.png": saved(colour_photo(40, 48), icc_profile=display_p3()),
        "inks.jpg": saved(Image.fromarray(colour_photo(40, 48)).convert("CMYK"), "JPEG"),
        "clear.png": saved(np.dstack([colour_photo(40, 48), soft_alpha(40, 48)])),
        "deep.tif": saved_tiff(deep(grey_photo(40, 48))),
        "dot.png": saved(colour_photo(1, 1)),
        "large.png": saved(colour_photo(64, 64)),
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1",
    }
    for name, data in files.items():
        (tmp_path / "archive" / name).write_bytes(data)
    done = through_the_stages(config(tiny_models, tmp_path / "archive", tmp_path / "run", max_megapixels=0.004))
    sound = set(files) - {"large.png", "phone.heic"}
    assert {key for key, row in done.plan.items() if row["status"] == "ok"} == sound == set(done.images)
    assert "64 x 64 pixels" in done.plan["large.png"]["error"]
    assert "the limit is 0.004 megapixels" in done.plan["large.png"]["error"]
    assert "HEIC" in done.plan["phone.heic"]["error"]


def manifest_error(models: TinyModels, archive: Path, tmp_path: Path, name: str, text: str, **settings: Any) -> str:
    (tmp_path / "manifest.csv").write_text(text)
    asked = config(
        *(models, archive, tmp_path / "run"),
        measurement="observed",
        manifest=str(tmp_path / "manifest.csv"),
        degradation=DegradationConfig(name, settings),
    )
    with pytest.raises(ConfigError) as caught:
        read_archive(asked)
    return str(caught.value)


def test_manifests_without_what_the_operator_needs(tiny_models: TinyModels, archive: Path, tmp_path: Path) -> None:
    def message(name: str, text: str, **settings: Any) -> str:
        return manifest_error(tiny_models, archive, tmp_path, name, text, **settings)

    assert "no column mask_seed (or mask" in message("random_inpainting", "key,missing\ncrop 1.png,0.5\n")
    assert "no column motion_angle, motion_seed" in message("motion_blur", "key,motion_length\ncrop 1.png,5\n")
    columns = "key,motion_length,motion_angle,motion_seed\n"
    assert "motion_length must be" in message("motion_blur", f"{columns}crop 1.png,50,0,0\n")
    assert "not a column of numbers" in message("motion_blur", f"{columns}crop 1.png,long,0,0\n")
    with pytest.raises(ConfigError, match=r"leaves missing, mask_seed \(or mask.*--manifest"):
        read_archive(
            config(
                *(tiny_models, archive, tmp_path / "run"),
                measurement="observed",
                degradation=DegradationConfig("random_inpainting", {"missing": [0.5, 0.5]}),
            )
        )


def test_a_family_that_does_not_fit_the_squares_of_the_prior_is_refused(
    tiny_models: TinyModels, archive: Path, tmp_path: Path
) -> None:
    for name, settings, words in (
        ("motion_blur", {"kernel_size": 61}, "61 pixels is larger than an image of 32 x 32"),
        ("box_inpainting", {"side": [8, 40]}, "side 40 is larger"),
        ("super_resolution", {"scale": 5}, "does not divide"),
    ):
        asked = config(
            *(tiny_models, archive, tmp_path / "run"), degradation=DegradationConfig(name, settings), fit="resize"
        )
        with pytest.raises(ConfigError, match=words):
            load_models(asked)
        load_models(asked.replaced("io", fit="whole"))  # which says of each photo whether it fits


def test_the_cuttings_whose_cost_is_measured_fit_the_operator(
    tiny_models: TinyModels, archive: Path, tmp_path: Path
) -> None:
    asked = config(
        *(tiny_models, archive, tmp_path / "run"), degradation=DegradationConfig("super_resolution", {"scale": 3})
    )
    calibrator = Calibrator(WorkerSettings.of(asked, "cpu", 1, lpips=False), MagicMock())
    for windows, size in ((1, (30, 30)), (2, (63, 63)), (3, (90, 66))):
        unit = {"data": [saved(colour_photo(66, 90))], "height": [90], "width": [66]}
        cut = calibrator.cut(unit, slice(None), windows)
        assert open_image(cut["data"][0]).pixels.shape[1:] == (cut["height"][0], cut["width"][0]) == size


@pytest.mark.parametrize("name", ["nonlinear_blur", "jpeg"])
def test_psld_needs_an_adjoint(tiny_models: TinyModels, archive: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"psld needs an adjoint, and {name} is nonlinear"):
        config(
            *(tiny_models, archive, tmp_path / "run"),
            solver=SolverConfig(name="psld"),
            degradation=DegradationConfig(name),
        )
