"""The board: work that kills its worker is given up, other work is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
import ray

from flashray.errors import ImageError
from flashray.pipeline.board import ATTEMPTS, start_board, under_way, watched


def crash() -> None:
    os._exit(1)


def lose_the_gpu() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("poison", [crash, lose_the_gpu])
def test_work_that_always_kills_its_worker_is_given_up(ray_cluster: None, poison: Callable[[], None]) -> None:
    board = start_board()

    @ray.remote(num_cpus=0.5, max_retries=-1)
    def work() -> str:
        try:
            with watched(board, "a poison image"):
                poison()
        except ImageError as error:
            return str(error)
        return "survived"

    message = ray.get(work.remote(), timeout=120)
    assert f"died {ATTEMPTS} times" in message
    assert "a poison image" in message


def test_work_that_ends_may_be_done_again(ray_cluster: None) -> None:
    board = start_board()
    for _ in range(3 * ATTEMPTS):
        with watched(board, "good work"):
            pass
        with pytest.raises(ValueError, match="mine"), watched(board, "work that raises"):
            raise ValueError("mine")


def test_progress_inside_units(ray_cluster: None) -> None:
    board = start_board()
    ray.get([board.report.remote("a", 30), board.report.remote("b", 99), board.report.remote("committed", 50)])
    assert under_way(board, {"a": 100, "b": 60, "not begun": 10}) == 30 + 60
    ray.kill(board)
    deadline = time.monotonic() + 60
    while under_way(board, {"a": 100}) and time.monotonic() < deadline:  # killing is asynchronous
        time.sleep(0.05)
    assert under_way(board, {"a": 100}) == 0
