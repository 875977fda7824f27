"""Training of SwinIR, the supervised baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.swinir import SwinIR
from flashray.degradations import Degradation
from flashray.degradations.simulate import degrade, degrade_at, spread_noise_std
from flashray.errors import ConfigError
from flashray.metrics import mean_interval, score
from flashray.training.loop import Task
from flashray.training.model_card import Interval
from flashray.training.photo_windows import random_views

LEVELS = 5


@dataclass(frozen=True)
class SwinIRConfig:
    """The network's sizes. The paper's are 180 channels, six times six layers, six heads and pixel_block 1; these are
    what a CPU core can train.

    Attributes:
        channels: features of a position; a multiple of `heads`.
        depths: Swin layers of each residual block.
        window: side of the attention's windows in positions.
        mlp_ratio: hidden features of a layer's perceptron over `channels`.
        pixel_block: side of the blocks of pixels that are one position.
    """

    channels: int = 64
    depths: tuple[int, ...] = (4, 4, 4, 4)
    heads: int = 2
    window: int = 8
    mlp_ratio: float = 2.0
    pixel_block: int = 2

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise ConfigError(f"swinir.channels is {self.channels}; give a multiple of swinir.heads, {self.heads}")
        if self.window < 2 or self.window % 2:
            raise ConfigError(f"swinir.window is {self.window}; give an even number, which can be shifted by half")


class SwinIRTask(Task):
    """Degrade each view with its own random severity and restore it: mean √((x̂ - x)² + ε²) (Charbonnier).

    Args:
        crop: side of the training views in pixels.
        charbonnier: ε, on [-1, 1].
        val_NCHW: clean validation photos in [-1, 1].
    """

    model: SwinIR

    def __init__(
        self,
        model: SwinIR,
        degradation: Degradation,
        noise: tuple[float, float],
        val_NCHW: Tensor,
        crop: int = 64,
        charbonnier: float = 1e-3,
    ) -> None:
        super().__init__()
        degradation.check_size((crop, crop))
        self.model, self.degradation, self.noise, self.val = model, degradation, noise, val_NCHW
        self.crop, self.charbonnier = crop, charbonnier

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x = random_views(window_BCHW, self.crop, generator)
        y, _ = degrade(x, self.degradation, self.noise, generator)
        x_hat = self.model(y).float()
        square = (x_hat - x).square()
        return {"loss": (square + self.charbonnier**2).sqrt().mean(), "mse": square.mean()}

    def validate(self) -> dict[str, float]:
        """Mean PSNR and SSIM of the validation photos, each degraded at one of LEVELS evenly spaced severities."""
        level_N = torch.arange(len(self.val)) % LEVELS / (LEVELS - 1)
        scores = restoration_scores(self.model, self.degradation, self.noise, self.val, level_N)
        return {name: values.mean().item() for name, values in scores.items()}

    def figures(self) -> list[dict[str, Interval]]:
        """At each of LEVELS evenly spaced severities: PSNR and SSIM of all validation photos, and those of y itself."""
        rows = []
        for level in torch.linspace(0, 1, LEVELS):
            level_N = level.expand(len(self.val))
            scores = restoration_scores(self.model, self.degradation, self.noise, self.val, level_N)
            rows.append({name: mean_interval(values.numpy()) for name, values in scores.items()})
        return rows


@torch.no_grad()
def restoration_scores(
    model: SwinIR, degradation: Degradation, noise: tuple[float, float], x_NCHW: Tensor, level_N: Tensor
) -> dict[str, Tensor]:
    """`psnr` and `ssim` of the restored photos and `y_psnr` and `y_ssim` of their measurements, [N] each on the CPU.

    Args:
        x_NCHW: clean photos in [-1, 1].
        level_N: their severities, 0 … 1; photo n's noise is that of seed n.
    """
    device = next(model.parameters()).device
    rows = []
    for n in range(0, len(x_NCHW), 16):
        x = x_NCHW[n : n + 16].to(device)
        seed_B = torch.arange(n, n + len(x), device=device)
        y = degrade_at(x, level_N[n : n + 16], degradation, spread_noise_std(noise, n, len(x)), seed_B)
        measured = {f"y_{name}": values for name, values in score(y, x).items()}
        rows.append(score(model(y), x) | measured)
    return {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}
