"""Experiments: what a file declares, and the grid that it makes at each scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.cells import Cell, expand
from benchmarks.experiment_file import load_experiment, variations
from benchmarks.run_experiment import EXPERIMENTS
from flashray.errors import ConfigError

DECLARED: dict[str, Any] = {
    "kind": "comparison",
    "title": "A grid",
    "tasks": [{"name": "easy"}, {"name": "hard", "vary": {"degradation.noise_std": [0.1, 0.2, 0.3]}}],
    "methods": [
        {"name": "AE", "baseline": "autoencoder"},
        {
            "name": "flash",
            "solver": {"name": "latent_dps", "settings": {"dc_step": 1.0}},
            "per_task": {"hard": {"solver.settings.dc_step": 2.0}},
            "vary": {"start.sigma_scale": [0.5, 1.0]},
        },
        {"name": "full", "start": {"mode": "full"}, "solver": {"name": "latent_dps"}, "tasks": ["hard"]},
    ],
    "scales": {
        "smoke": {"images": 2, "steps": 10, "most_values": 1},
        "small": {"images": 8, "full_images": 3, "full_steps": 100},
        "paper": {"images": 100, "skip": ["easy", "flash"]},
    },
}


def cells(tmp_path: Path, scale: str = "small", images: int | None = None, **changed: Any) -> list[Cell]:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(DECLARED | changed))
    return expand(load_experiment(str(path), EXPERIMENTS), scale, images)


def test_every_task_meets_every_method_that_it_is_for(tmp_path: Path) -> None:
    found = cells(tmp_path)
    assert [cell.name for cell in found][:3] == [
        "easy: AE",
        "easy: flash, sigma_scale 0.5",
        "easy: flash, sigma_scale 1",
    ]
    assert len(found) == 3 + 3 * 4
    hard = [cell for cell in found if cell.task.base == "hard" and cell.method.base == "flash"]
    assert {cell.task.degradation.noise_std for cell in hard} == {0.1, 0.2, 0.3}
    assert {cell.method.start.sigma_scale for cell in hard} == {0.5, 1.0}
    assert hard[0].task.at == {"noise_std": 0.1}
    assert hard[0].method.at == {"sigma_scale": 0.5}


def test_a_method_may_differ_on_one_task(tmp_path: Path) -> None:
    flash = [(cell.task.base, cell.method.solver) for cell in cells(tmp_path) if cell.method.at]
    step = {task: solver.settings["dc_step"] for task, solver in flash if solver}
    assert step == {"easy": 1.0, "hard": 2.0}


def test_scales_say_how_much_is_run(tmp_path: Path) -> None:
    full = next(cell for cell in cells(tmp_path) if cell.method.name == "full")
    flash = next(cell for cell in cells(tmp_path) if cell.method.base == "flash")
    assert (full.images, flash.images) == (3, 8)
    assert full.method.solver is not None
    assert flash.method.solver is not None
    assert (full.method.solver.steps, flash.method.solver.steps) == (100, 1000)
    smoke = cells(tmp_path, "smoke")
    assert len(smoke) == 2 + 3
    assert {cell.method.solver.steps for cell in smoke if cell.method.solver} == {10}
    assert {cell.name.split(":")[1] for cell in cells(tmp_path, "paper")} == {" AE", " full"}
    assert {cell.images for cell in cells(tmp_path, images=2)} == {2}


def test_values_of_a_list_are_chosen_evenly() -> None:
    entry = {"name": "m", "vary": {"a.b": [1, 2, 3, 4, 5], "a.c": ["x"]}}
    assert [one["a"]["b"] for one in variations(entry, 3, "here")] == [1, 3, 5]
    assert [one["name"] for one in variations(entry, 1, "here")] == ["m, b 1, c x"]
    assert list(variations({"name": "m"}, None, "here")) == [{"name": "m", "base": "m"}]


def identified(cell: Cell, **changed: Any) -> Cell:
    return cell.identified(**({"weights": {"prior": "p"}, "photos": ["a"], "more": {"seed": 0}} | changed))


def test_a_cell_is_known_by_what_its_results_depend_on(tmp_path: Path) -> None:
    known = {identified(cell).id for cell in cells(tmp_path)}
    assert len(known) == len(cells(tmp_path))
    renamed = [{**DECLARED["tasks"][0], "name": "other name"}, DECLARED["tasks"][1]]
    assert {identified(cell).id for cell in cells(tmp_path, tasks=renamed)} == known
    cell = cells(tmp_path)[0]
    others = [
        identified(cell, weights={}),
        identified(cell, photos=["b"]),
        identified(cell, more={"seed": 1}),
        identified(cells(tmp_path, "paper")[0]),
    ]
    assert len({identified(cell).id, *(other.id for other in others)}) == 5


def test_a_full_chain_does_not_depend_on_what_flash_would_have_done(tmp_path: Path) -> None:
    full = DECLARED["methods"][2]
    one, other = (
        [identified(cell).id for cell in cells(tmp_path, methods=[full | {"start": start}])]
        for start in ({"mode": "full"}, {"mode": "full", "sigma_scale": 0.3})
    )
    assert one == other


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metods": []}, "metods"),
        ({"kind": "tournament"}, "kind"),
        ({"methods": [{"name": "m", "solver": {"name": "latent_dps", "stepz": 3}}]}, "method 'm', solver: .*stepz"),
        ({"methods": [{"name": "m", "solver": {"name": "latent_dps", "steps": "many"}}]}, "steps"),
        ({"methods": [{"name": "m"}]}, "either a solver or a baseline"),
        ({"methods": [{"name": "m", "baseline": "autoencoder", "tasks": ["esay"]}]}, "esay is not in the file"),
        ({"methods": [{"name": "m", "baseline": "a", "vary": {"start.c": 1}}]}, "wants a list"),
        ({"methods": [{"name": "m", "baseline": "a", "vary": {"name.c": [1]}}]}, "no mapping"),
        ({"tasks": [{"name": "t", "degradation": {"nmae": "x"}}]}, "task 't', degradation: .*nmae"),
        ({"methods": [{"name": "m", "baseline": "a", "start": {"severity_encoder": "x"}}]}, "stands beside start"),
        ({"pairs": [["flash", "fulll"]]}, "fulll is not in the file"),
        ({"scales": {"smoke": {"images": 1}}}, "no scale small; it has smoke"),
        ({"scales": {"small": {"pictures": 1}}}, "scales, small: unknown key pictures"),
        ({"scales": {"small": {"images": 1, "skip": ["AE", "flash", "full"]}}}, "no cell is left"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells(tmp_path, **changed)


def test_an_unknown_experiment_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"comparison.*severity"):
        load_experiment("comparisson", EXPERIMENTS)
    assert load_experiment("ablation-lambda", EXPERIMENTS).name == "ablation_lambda"
    broken = tmp_path / "broken.yaml"
    broken.write_text("tasks: [")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_experiment(str(broken), EXPERIMENTS)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
def test_every_experiment_has_every_scale(path: Path, scale: str) -> None:
    found = expand(load_experiment(path.stem, EXPERIMENTS), scale)
    assert len({identified(cell).id + cell.name for cell in found}) == len(found)
