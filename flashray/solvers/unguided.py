"""The reverse diffusion alone: for measurements whose operator nobody knows, and for samples of a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flashray.seeding import STREAM_SOLVER
from flashray.solvers.solver import Problem, Step, reverse_step


@dataclass(frozen=True)
class Unguided:
    """z_prev = reverse_step(z): what the measurement says is in the start latent, which ẑ gave."""

    name: ClassVar[str] = "unguided"
    needs_gradient: ClassVar[bool] = False
    needs_adjoint: ClassVar[bool] = False

    def __call__(self, step: Step, problem: Problem | None) -> Tensor:
        return reverse_step(step, step.noise(STREAM_SOLVER))
