"""How fast a training goes, beside what the machine's matrix unit could do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is timed
_SECONDS = 0.3  # for how long


def matrix_rate(device: str | torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of square matrix products: the fastest, as others may use the machine."""
    device = torch.device(device)
    side = _SIDE.get(device.type, 2048)
    a, b = (torch.full((side, side), 0.5, device=device, dtype=dtype) for _ in "ab")
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    a @ b
    wait()
    start, fastest = time.perf_counter(), float("inf")
    while time.perf_counter() - start < _SECONDS:
        mark = time.perf_counter()
        a @ b
        wait()
        fastest = min(fastest, time.perf_counter() - mark)
    return 2 * side**3 / fastest


def operations_a_sample(compute: Callable[[Tensor, torch.Generator], dict[str, Tensor]], batch: Tensor) -> float:
    """Floating-point operations of one sample's loss and its gradients: matrix products and convolutions alone.

    Measured on the first two samples of a batch; random numbers drawn here are not missed elsewhere, gradients stay.
    """
    some = batch[:2]
    devices = [batch.device] if batch.device.type == "cuda" else []
    with torch.random.fork_rng(devices), FlopCounterMode(display=False) as counter:
        compute(some, torch.Generator().manual_seed(0))["loss"].backward()
    return counter.get_total_flops() / len(some)


@dataclass
class Rate:
    """Counts samples, and says every so many seconds how many a second there were since it last did."""

    every: float = 0.0  # seconds between two lines; 0 says nothing
    draws: int = 1  # how often each sample is trained on in a step
    operations: float = 0.0  # `operations_a_sample`
    peak: float = 1.0  # `matrix_rate` of the device

    def __post_init__(self) -> None:
        self._mark, self._samples = time.perf_counter(), 0

    def add(self, samples: int) -> dict[str, float] | None:
        """Note a step of so many samples; `draws_per_second` and `matrix_share` when a line is due."""
        self._samples += samples
        seconds = time.perf_counter() - self._mark
        if not self.every or seconds < self.every:
            return None
        rate = self._samples / seconds
        self._mark, self._samples = time.perf_counter(), 0
        return {"draws_per_second": rate * self.draws, "matrix_share": rate * self.operations / self.peak}
