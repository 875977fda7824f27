"""Denoisers that ask for more than (z, t), with the answer of someone who asks for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from flashray.prior.folder import PipelineFolder


class NullCondition(nn.Module):
    """A conditional denoiser as a function of (z, t) alone; guidance is off.

    `denoiser` is diffusers' model. Every call gets the `constants`, tensors with a batch dimension of 1 that move with
    the module.
    """

    denoiser: Any

    def __init__(self, denoiser: nn.Module, **constants: Tensor) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.names = tuple(constants)
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def config(self) -> Any:
        """The denoiser's own config."""
        return self.denoiser.config

    def forward(self, z_BCHW: Tensor, timestep_B: Tensor) -> Any:
        """The denoiser's answer; its `sample` is [B, C or 2C, h, w]."""
        constants = {name: getattr(self, name) for name in self.names}
        return self.denoiser(z_BCHW, timestep=timestep_B, **self.arguments(repeat(constants, len(z_BCHW))))

    def arguments(self, constants: dict[str, Tensor]) -> dict[str, Any]:
        """The denoiser's keyword arguments, of constants repeated for the batch."""
        return constants


def repeat(constants: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Views of [1, …] tensors as [count, …]."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in constants.items()}


class Family:
    """How one kind of checkpoint becomes a function of (z, t). A kind overrides what it does otherwise."""

    name: ClassVar[str]  # what the documentation calls it
    classes: ClassVar[tuple[str, ...]]  # the denoiser classes of diffusers that may belong to it
    wrapper: ClassVar[type[NullCondition] | None] = None  # of the denoiser; None where (z, t) is all that it asks for

    def fits(self, pipeline: PipelineFolder) -> bool:
        """Whether a pipeline whose denoiser is of one of the classes is of this kind."""
        return True

    def refuse(self, pipeline: PipelineFolder) -> None:
        """Raise ConfigError where the denoiser asks for what cannot be left out. No weight is read."""

    def condition(self, pipeline: PipelineFolder) -> dict[str, Tensor]:
        """The constants that the denoiser is given, from a file or a text encoder; ConfigError where neither is."""
        return {}

    def files(self, pipeline: PipelineFolder) -> list[Path]:
        """The files that `condition` reads."""
        return []

    def wrap(self, denoiser: nn.Module, constants: dict[str, Tensor]) -> nn.Module:
        """(z, t) ↦ the denoiser's answer."""
        return denoiser if self.wrapper is None else self.wrapper(denoiser, **constants)
