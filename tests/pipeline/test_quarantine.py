"""The quarantine: work that kills its worker is given up, other work is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from flashray.pipeline.attempt_markers import Past
from flashray.pipeline.quarantine import ATTEMPTS, close, nfe_under_way, reason, recall, start_quarantine, watched


def crash() -> None:
    os._exit(1)


def lose_the_gpu() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def working(quarantine: Any, images: list[str], poison: Callable[[], None]) -> Any:
    """A task over some images, of which those called poison do harm: the errors of the others and theirs."""

    @ray.remote(num_cpus=0.5, max_retries=-1)
    def work() -> dict[str, str | None]:
        errors: dict[str, str | None] = {}
        with watched(quarantine, "some work") as watch:
            for places, given_up in watch.parts(images):
                part = [images[i] for i in places]
                try:
                    if given_up:
                        raise given_up
                    if any(image.startswith("poison") for image in part):
                        poison()
                    errors |= dict.fromkeys(part)
                except Exception as error:
                    errors |= dict.fromkeys(part, reason(error))
        return errors

    return work.remote()


@pytest.mark.parametrize("poison", [crash, lose_the_gpu])
def test_only_the_image_that_kills_its_worker_is_given_up(ray_cluster: None, poison: Callable[[], None]) -> None:
    errors = ray.get(working(start_quarantine(), ["a", "poison", "b"], poison), timeout=120)
    assert errors["a"] is errors["b"] is None
    assert f"died {ATTEMPTS} times while it was at some work, and once when it was at this image" in errors["poison"]


def test_two_poisons_do_not_give_their_neighbours_up(ray_cluster: None) -> None:
    errors = ray.get(working(start_quarantine(), ["poison 1", "a", "poison 2", "b"], crash), timeout=120)
    assert [name for name, error in errors.items() if error] == ["poison 1", "poison 2"]


def test_work_that_no_image_is_to_blame_for_is_given_up_whole(ray_cluster: None) -> None:
    quarantine = start_quarantine()
    # as if the worker died three times before it came to an image
    recall(quarantine, {"some work": Past(ATTEMPTS)})
    errors = ray.get(working(quarantine, ["a", "b"], crash), timeout=120)
    assert all(error and f"died {ATTEMPTS} times" in error for error in errors.values())


def test_what_earlier_drivers_know_counts(ray_cluster: None) -> None:
    quarantine = start_quarantine()
    recall(quarantine, {"some work": Past(ATTEMPTS, frozenset({"poison"}))})
    errors = ray.get(working(quarantine, ["a", "poison"], crash), timeout=120)
    assert errors["a"] is None
    assert errors["poison"] is not None


def test_work_that_ends_may_be_done_again(ray_cluster: None) -> None:
    quarantine = start_quarantine()
    for _ in range(3 * ATTEMPTS):
        with watched(quarantine, "good work") as watch:
            assert [places for places, _ in watch.parts(["a", "b"])] == [[0, 1]]
        with pytest.raises(ValueError, match="mine"), watched(quarantine, "work that raises"):
            raise ValueError("mine")


def test_a_closed_quarantine_knows_what_was_begun_and_lets_nothing_more_begin(ray_cluster: None) -> None:
    quarantine = start_quarantine()
    with watched(quarantine, "done"):
        pass
    with watched(quarantine, "under way"):
        assert close(quarantine) == {"done": 1, "under way": 1}
    late = working(quarantine, ["a"], crash)
    assert ray.wait([late], timeout=3)[0] == []
    ray.cancel(late, force=True)


def test_a_driver_that_stops_waits_for_notes_under_way(ray_cluster: None, tmp_path: Path) -> None:
    """It deletes the notes of what it stops; one that came later would count as a death."""
    note, quarantine = tmp_path / "note", start_quarantine()

    def slowly(number: int, image: str | None) -> None:
        time.sleep(1)
        note.write_text(str(number))

    @ray.remote(num_cpus=0)
    def work() -> None:
        with watched(quarantine, "work", slowly):
            time.sleep(60)

    at_work = work.remote()
    while not ray.get(quarantine.under_way.remote()):
        time.sleep(0.01)
    assert close(quarantine) == {"work": 1}
    assert note.read_text() == "1"
    ray.cancel(at_work, force=True)


def test_progress_inside_units(ray_cluster: None) -> None:
    quarantine = start_quarantine()
    ray.get(
        [
            quarantine.report.remote("a", 30),
            quarantine.report.remote("b", 99),
            quarantine.report.remote("committed", 50),
        ]
    )
    assert nfe_under_way(quarantine, {"a": 100, "b": 60, "not begun": 10}) == 30 + 60
    ray.kill(quarantine)
    deadline = time.monotonic() + 60
    while nfe_under_way(quarantine, {"a": 100}) and time.monotonic() < deadline:  # killing is asynchronous
        time.sleep(0.05)
    assert nfe_under_way(quarantine, {"a": 100}) == 0
