"""The actors and tasks of both passes, called in this process: one image's trouble stays its own."""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flashray import restorer
from flashray.engine import solve
from flashray.images import open_image
from flashray.pipeline import plan
from flashray.pipeline import solve as solving
from flashray.pipeline.archive import read_archive
from flashray.pipeline.commit import read_commits
from flashray.pipeline.load import load
from flashray.pipeline.plan import SeverityActor, chunks, finish_plan
from flashray.pipeline.quarantine import start_quarantine
from flashray.pipeline.solve import UNIT_COLUMNS, SolverActor
from flashray.pipeline.units import gather, index
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.recipe import FusionConfig, SolverConfig
from tests.pipeline.conftest import planned
from tests.support.models import SIDE
from tests.support.runs import changed
from tests.support.small_runs import write_unwatched


@pytest.fixture(scope="module")
def quarantine(ray_cluster: None) -> Any:
    return start_quarantine()


def pixels_of(image: dict[str, Any]) -> torch.Tensor:
    """The pixels of an `IMAGE` on the scale of 8 bits, not rounded."""
    return torch.frombuffer(bytearray(image["pixels"]), dtype=torch.uint16).float() / 257


def solved(work: WorkerSettings, quarantine: Any, rows: pa.Table) -> list[dict[str, Any]]:
    """Commit rows with their images, unit by unit."""
    actor, units = SolverActor(work, quarantine), gather(rows, index(rows), UNIT_COLUMNS)
    result = []
    for i in range(len(units)):
        (unit,) = actor(load(units.slice(i, 1), work, quarantine)).to_pylist()
        result += [row | {"image": image} for row, image in zip(unit["rows"], unit["images"], strict=True)]
    return result


def test_half_precision_moves_an_image_little(work: WorkerSettings, quarantine: Any) -> None:
    images, plan_rows = {}, planned(work, quarantine)
    for precision in ("float32", "bf16"):
        config = changed(work.config, precision=precision)
        chosen = dataclasses.replace(work, config=config)
        rows = {row["key"]: row["image"] for row in solved(chosen, quarantine, plan_rows)}
        images[precision] = torch.stack([pixels_of(rows[key]) for key in rows])
    difference = (images["float32"] - images["bf16"]).abs().mean()
    assert 0 < difference < 3  # of 255


@pytest.mark.parametrize("fusion", ["none", "operator", "learned"])
def test_the_scores_of_no_step_are_those_of_a_run_without_steps(
    work: WorkerSettings, quarantine: Any, fusion: str
) -> None:
    fused = changed(work.config, fusion=FusionConfig(fusion), metrics=["psnr", "ssim"])  # type: ignore[arg-type]
    rows = solved(WorkerSettings.of(fused, "cpu", 1, lpips=False), quarantine, planned(work, quarantine))
    start = dataclasses.replace(fused.recipe.start, strength=0.0)
    stopped = WorkerSettings.of(changed(fused, start=start), "cpu", 1, lpips=False)
    without = {row["key"]: row for row in solved(stopped, quarantine, planned(stopped, quarantine))}
    assert len({row["nfe"] for row in rows}) > 1
    for row in rows:
        one = without[row["key"]]
        assert one["nfe"] == one["start_step"] == 0
        for metric in ("psnr", "ssim"):
            assert one[metric] == pytest.approx(one[f"estimate_{metric}"], abs=1e-4)
            assert row[f"estimate_{metric}"] == pytest.approx(one[metric], abs=1e-4)
            if fusion == "none":
                assert one[f"decoded_{metric}"] is None
            else:
                assert one[f"decoded_{metric}"] != pytest.approx(one[metric], abs=1e-4)


def test_a_result_does_not_depend_on_its_company(work: WorkerSettings, quarantine: Any) -> None:
    rows = planned(work, quarantine)
    together = {row["key"]: row["image"] for row in solved(work, quarantine, rows)}
    alone = changed(work.config, slots=1, severity_batch=1)
    for row in solved(WorkerSettings.of(alone, "cpu", 1, lpips=False), quarantine, rows):
        one, other = (pixels_of(image) for image in (row["image"], together[row["key"]]))
        assert (one - other).abs().max() <= 1  # of 255: the arithmetic's rounding, and no more


def test_an_error_midway_keeps_what_is_done(
    work: WorkerSettings, quarantine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: Any, **values: Any) -> Any:
        yield next(iter(solve(*args, **values)))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(restorer, "solve", breaks)
    rows = solved(work, quarantine, planned(work, quarantine))
    units = len(index(planned(work, quarantine)))
    assert sum(row["status"] == "ok" for row in rows) == units
    for row in rows:
        assert (row["image"] is not None) == (row["status"] == "ok")
        assert row["error"] == (None if row["status"] == "ok" else "RuntimeError: out of memory")


def test_a_result_that_is_not_finite_is_an_error_row(work: WorkerSettings, quarantine: Any) -> None:
    wild = changed(work.config, solver=SolverConfig(steps=20, settings={"dc_step": 1e38}))
    rows = solved(WorkerSettings.of(wild, "cpu", 1, lpips=False), quarantine, planned(work, quarantine))
    # one step may lead to something huge that is still a number
    wild_rows = [row for row in rows if row["nfe"] > 3]
    assert {row["status"] for row in wild_rows} == {"error"}
    assert all("not finite" in row["error"] and row["image"] is None for row in wild_rows)


def test_an_image_that_vanished_since_the_plan(work: WorkerSettings, quarantine: Any, tmp_path: Path) -> None:
    rows = planned(work, quarantine)
    uris = rows["uri"].to_pylist()
    uris[2] = str(tmp_path / "gone.png")
    rows = rows.set_column(rows.schema.get_field_index("uri"), "uri", pa.array(uris))
    found = solved(work, quarantine, rows)
    assert [row["status"] for row in found].count("error") == 1
    assert "no longer there" in next(row["error"] for row in found if row["status"] == "error")


def test_severity_that_fails_is_the_chunks_own_loss(
    work: WorkerSettings, quarantine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = SeverityActor(work, quarantine)
    todo = chunks(read_archive(work.config).images, 4)

    def breaks(y: torch.Tensor) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(actor.restorer, "estimate", breaks)
    table = actor(load(todo.slice(0, 1), work, quarantine))
    assert table["status"].to_pylist() == ["error"] * 4
    assert table["error"].to_pylist() == ["RuntimeError: out of memory"] * 4


def test_severity_that_fails_for_one_size_fails_no_other(
    work: WorkerSettings, quarantine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = SeverityActor(work, quarantine)
    todo = chunks(read_archive(work.config).images, 4)
    monkeypatch.setattr(plan, "batches", lambda restorer, chunk, rows, indices, *_: [indices[:3], indices[3:]])
    before = actor.estimate_batch

    def breaks(chunk: dict[str, Any], rows: list[dict[str, Any]], indices: Sequence[int]) -> None:
        if len(indices) == 3:
            rows[indices[0]]["error"] = "its own"
            raise RuntimeError("out of memory")
        before(chunk, rows, indices)

    monkeypatch.setattr(actor, "estimate_batch", breaks)
    table = actor(load(todo.slice(0, 1), work, quarantine))
    assert table["error"].to_pylist() == ["its own", "RuntimeError: out of memory", "RuntimeError: out of memory", None]


def test_an_interrupted_severity_pass_goes_on(
    work: WorkerSettings, quarantine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, seen = SeverityActor(work, quarantine), []

    def estimate_all(todo: pa.Table, *_: Any) -> Any:
        for i in range(len(todo)):
            seen.append(todo["unit_id"][i].as_py())
            if len(seen) == 3:
                raise KeyboardInterrupt
            yield actor(load(todo.slice(i, 1), work, quarantine))

    listing, folder = read_archive(work.config).images, str(Path(work.config.io.output) / "severity")
    monkeypatch.setattr(plan, "estimate_all", estimate_all)
    monkeypatch.setattr(plan, "KEEP_EVERY", -1.0)

    def severities() -> pa.Table:
        with plan.Progress("plan", len(listing)) as progress:
            return plan.severities(listing, folder, work, None, quarantine, progress)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        severities()
    found = severities()
    assert seen == ["chunk-00000000", "chunk-00000001", "chunk-00000002", "chunk-00000002"]
    assert found["key"].equals(listing["key"])
    undisturbed = finish_plan(found, actor.restorer.schedule, work.config, attempt=0)
    assert undisturbed == planned(work, quarantine)
    for shard in Path(folder).iterdir():  # as an earlier version wrote them
        pq.write_table(pq.read_table(shard).drop_columns(["touched", "residual"]), shard)
    assert severities().drop_columns(["touched", "residual"]) == found.drop_columns(["touched", "residual"])
    assert len(seen) == 4


def test_kept_severities_serve_an_archive_that_has_grown(
    work: WorkerSettings, quarantine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks are cut anew, and what is known of a chunk in part is estimated again, and not twice."""
    actor, seen = SeverityActor(work, quarantine), []

    def estimate_all(todo: pa.Table, *_: Any) -> Any:
        for i in range(len(todo)):
            seen.append(todo["key"][i].as_py())
            yield actor(load(todo.slice(i, 1), work, quarantine))

    whole, folder = read_archive(work.config).images, str(Path(work.config.io.output) / "grown")
    monkeypatch.setattr(plan, "estimate_all", estimate_all)

    def severities(listing: pa.Table) -> pa.Table:
        with plan.Progress("plan", len(listing)) as progress:
            return plan.severities(listing, folder, work, None, quarantine, progress)  # type: ignore[arg-type]

    size = work.config.resources.severity_batch
    assert size < 6 <= len(whole)
    severities(whole.slice(0, size + 1))  # a whole chunk, and a part of the next
    before, _ = len(seen), seen.clear()
    found = severities(whole)
    assert before == 2
    assert whole["key"][0].as_py() not in [key for keys in seen for key in keys]
    assert found["key"].equals(whole["key"])
    assert severities(whole).equals(found)
    later = severities(whole.slice(1))  # the first image has left: all chunks are cut anew, and nothing is unknown
    assert later["key"].equals(whole["key"].slice(1))


def test_a_name_too_long_for_the_output_is_an_error_row(work: WorkerSettings) -> None:
    config = changed(work.config, format="png")
    source = Path(config.io.archive) / "crop 0.png"
    image: dict[str, Any] = {"pixels": bytes(6 * SIDE * SIDE), "height": SIDE, "width": SIDE}
    image |= {"uri": str(source), "data": source.read_bytes()}
    long = "x" * 251 + ".jpg"  # 255 bytes, as long as a name may be; with the suffix of the format it is longer
    rows = [{"key": key, "status": "ok", "nfe": 2} for key in ("a b.png", long)]
    schema = solving.SOLVED
    table = pa.Table.from_pylist([{"unit_id": "00-00000000", "rows": rows, "images": [image, image]}], schema=schema)
    written = write_unwatched(table, WorkerSettings.of(config, "cpu", 1, lpips=False)).to_pylist()
    assert written == [{"unit_id": "00-00000000", "images": 2}]
    first, second = read_commits(config.io.output, ["00-00000000"]).to_pylist()
    assert (first["status"], second["status"]) == ("ok", "error")
    assert "too long" in second["error"]
    assert open_image((Path(config.io.output) / "a b.png").read_bytes()).pixels.shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EILSEQ])
def test_a_name_that_the_outputs_filesystem_refuses_is_an_error_row(
    work: WorkerSettings, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source = Path(work.config.io.archive) / "crop 0.png"
    image: dict[str, Any] = {"pixels": bytes(6 * SIDE * SIDE), "height": SIDE, "width": SIDE}
    image |= {"uri": str(source), "data": source.read_bytes()}
    unit = {"unit_id": "00-00000000", "rows": [{"key": "12:30.png", "status": "ok", "nfe": 2}], "images": [image]}

    def refused(*_: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr("flashray.pipeline.unit_writers.FileWriter.add", refused)
    write_unwatched(pa.Table.from_pylist([unit], schema=solving.SOLVED), work)
    (row,) = read_commits(work.config.io.output, ["00-00000000"]).to_pylist()
    assert (row["status"], row["error"]) == ("error", "the output's filesystem does not take its name: refused")


def test_loaded_rows_keep_their_order_and_their_errors(
    work: WorkerSettings, quarantine: Any, tmp_path: Path, archive: Path
) -> None:
    good = str(archive / "crop 0.png")
    absent, folder = str(tmp_path / "absent.png"), str(tmp_path)
    columns = {"unit_id": ["u"], "key": [["a", "b", "c", "d"]], "uri": [[good, absent, good, folder]]}
    columns |= {name: [[None] * 4] for name in ("given", "offset", "length")}
    (row,) = load(pa.table(columns | {"reference_uri": [[good, good, absent, good]]}), work, quarantine).to_pylist()
    assert [error is None for error in row["error"]] == [True, False, True, False]
    assert "no longer there" in row["error"][1]
    assert "cannot be read" in row["error"][3]
    assert row["data"][0] == row["data"][2] == row["reference_data"][0] == Path(good).read_bytes()
    assert row["data"][1] is row["reference_data"][2] is None


def test_files_that_are_no_sound_images_are_error_rows(
    work: WorkerSettings, quarantine: Any, tmp_path: Path, archive: Path
) -> None:
    good = (archive / "crop 0.png").read_bytes()
    files = {"good.png": good, "cut.png": good[: len(good) // 2], "empty.png": b"", "text.png": b"no image"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    actor = SeverityActor(work, quarantine)
    columns: dict[str, Any] = {"unit_id": ["c"], "index": [[0, 1, 2, 3]], "key": [list(files)]}
    columns |= {"uri": [[str(tmp_path / name) for name in files]], "given": [[None] * 4], "noise_std": [[None] * 4]}
    columns |= {name: [[None] * 4] for name in ("offset", "length")}
    rows = actor(load(pa.table(columns), work, quarantine)).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "error", "error", "error"]
    assert (rows[0]["width"], rows[0]["height"]) == (SIDE, SIDE)
    assert "damaged or cut short" in rows[1]["error"]
    assert "the file is empty" in rows[2]["error"]


def test_scalar_parameters_are_kept_as_json(work: WorkerSettings, quarantine: Any) -> None:
    for text in planned(work, quarantine)["parameters"].to_pylist():
        assert set(json.loads(text)) == {"blur_std"}
