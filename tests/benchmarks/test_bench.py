"""`make bench` measures what it says; how long that took is not asserted."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.speed import bench_parts
from benchmarks.speed.bench import bench
from benchmarks.speed.bench_parts import PARTS
from benchmarks.speed.bench_setup import BenchConfig, Part, SpeedSetup
from benchmarks.speed.random_ldm import LDM
from flashray.errors import ConfigError
from flashray.recipe import Recipe
from tests.support.golden import toy_prior


def config(output: Path, parts: list[Part], **more: object) -> BenchConfig:
    small = {"images": 2, "full_images": 1, "slots": [1, 2], "steps": 2, "repeats": 1}
    return BenchConfig(output=str(output), parts=parts, **(small | more))  # type: ignore[arg-type]


def test_parts_go_into_one_flat_file_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    for part, value in (("packing", 2.0), ("engine", 3.0)):
        monkeypatch.setitem(
            PARTS, part, lambda setup, part=part, value=value: ({part: value}, [{"a": value, "b": "x"}])
        )
    for part in ("packing", "engine"):
        bench(config(tmp_path, [part]))
    assert json.loads((tmp_path / "bench.json").read_text()) == {"packing": 2.0, "engine": 3.0}
    page = (tmp_path / "bench.md").read_text()
    assert "| packing | 2 |" in page
    assert "| 3 | x |" in page
    assert str(tmp_path / "bench.json") in capsys.readouterr().out


def test_no_recipe_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="name at least one recipe"):
        bench(BenchConfig([], str(tmp_path)))


def test_engine_throughput_and_flops_of_the_bundled_prior(tmp_path: Path):
    setup = SpeedSetup(config(tmp_path, []))
    found, rows = PARTS["engine"](setup)
    assert found["engine_over_loop"] == max(row["ratio"] for row in rows)
    assert {row["slots"] for row in rows} == {1, 2}
    _, rows = PARTS["throughput"](setup)
    assert [(row["precision"], row["slots"]) for row in rows] == [
        ("float32", 1), ("float32", 2), ("bf16", 1), ("bf16", 2),
    ]  # fmt: skip
    assert all(row["nfe_per_second"] > 0 and math.isnan(row["peak_gb"]) for row in rows)


def test_a_packed_archive_keeps_the_slots_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    setup = SpeedSetup(config(tmp_path, []))
    vars(setup)["prior"] = toy_prior()
    monkeypatch.setattr(bench_parts, "UTILIZATION_IMAGES", 64)
    found, (packed, listed) = PARTS["slot_utilization"](setup)
    assert found["slot_utilization"] == packed["slot_utilization"] > listed["slot_utilization"]
    assert packed["slot_utilization"] > 0.9


def test_quality_says_what_beats_the_full_chain_and_the_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The full chain is cut short here; what is compared with it is not."""
    setup = SpeedSetup(config(tmp_path, []))
    monkeypatch.setattr(setup.prior, "schedule", setup.prior.schedule.respaced(20))
    monkeypatch.setattr("benchmarks.speed.bench_setup.load_lpips", lambda net: torch.nn.Identity())
    monkeypatch.setattr(
        bench_parts, "scores_of", lambda restorer, images, x, lpips: {"psnr": torch.stack(images).mean((1, 2, 3))}
    )
    vars(setup)["recipes"] = {name: short(recipe) for name, recipe in setup.recipes.items()}
    found, rows = PARTS["quality"](setup)
    estimate, full, *recipes = rows
    assert (estimate["nfe"], full["nfe"]) == (0, 20)
    good = [row for row in recipes if row["psnr"] > estimate["psnr"] and row["psnr_1"] > full["psnr_1"]]
    assert found.get("nfe_at_full_quality") == (min(row["nfe"] for row in good) if good else None)
    assert found["seconds_over_full_loop"] == min(row["seconds_over_full_loop"] for row in good or recipes)


def test_options_are_compared_and_leave_the_prior_as_it_was(tmp_path: Path):
    setup = SpeedSetup(config(tmp_path, [], options=["bf16", "channels_last", "one thread bf16"]))
    vars(setup)["lpips"] = None
    layout = {name: value.stride() for name, value in setup.prior.state_dict().items()}
    threads = torch.get_num_threads()
    _, (plain, *others) = PARTS["options"](setup)
    assert (plain["option"], plain["speed_up"], plain["psnr_change"], plain["kept"]) == ("float32", 1.0, 0.0, "yes")
    assert [row["option"] for row in others] == ["bf16", "channels_last", "one thread bf16"]
    assert 0 < abs(others[0]["psnr_change"]) < 0.05
    assert abs(others[1]["psnr_change"]) < 0.001
    assert {name: value.stride() for name, value in setup.prior.state_dict().items()} == layout
    assert (setup.prior.bf16, torch.get_num_threads()) == (False, threads)


def test_an_option_that_changes_the_figures_is_not_kept():
    from benchmarks.speed.device_options import compare, make_options

    prior = toy_prior()
    made = make_options(["bf16"])
    spoilt = {"float32": {"psnr": 30.0, "lpips": 0.2}, "bf16": {"psnr": 30.0, "lpips": 0.2011}}
    (_, row) = compare(made, prior, lambda: None, lambda: spoilt["bf16" if prior.bf16 else "float32"], 1)
    assert row["kept"] == "no"
    assert row["lpips_change"] == pytest.approx(0.0011)


def test_an_unknown_option_is_named():
    from benchmarks.speed.device_options import make_options

    with pytest.raises(ConfigError, match=r"wings.*channels_last"):
        make_options(["wings"])


def short(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, solver=dataclasses.replace(recipe.solver, steps=20))


@pytest.mark.slow
def test_a_random_ldm_has_the_published_sizes():
    from benchmarks.speed.random_ldm import random_ldm

    prior = random_ldm()
    count = sum(p.numel() for p in prior.denoiser.parameters()) / 1e6
    assert 270 < count < 280
    assert prior.name == LDM
    with torch.no_grad():
        z = prior.encode(torch.zeros(1, 3, 256, 256))
        assert z.shape == (1, 3, 64, 64)
        assert prior.epsilon(z, torch.tensor([5])).shape == z.shape
        assert prior.decode(z).shape == (1, 3, 256, 256)
