"""flashray for deepinv: its Reconstructor, and a Physics with its noise as the degradation of a recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from deepinv.models import Reconstructor
from deepinv.physics import Physics
from torch import Tensor

from flashray.degradations.deepinv_physics import check_measurement, parameters_of, refused
from flashray.errors import ConfigError, FlashrayError
from flashray.loading import load
from flashray.recipe import DegradationConfig, Recipe
from flashray.restored import Restored
from flashray.restorer import Restorer


def degradation(physics: Physics, noise_std: float | None = None, size: tuple[int, int] = (0, 0)) -> DegradationConfig:
    """A physics as the degradation of a recipe; its noise is that of its noise model, or `noise_std`.

    `size` is (H, W) of the images, where the physics fits one size and has no attribute img_size. ConfigError where
    noise_std is missing, because the noise model is unknown or its noise depends on the image.
    """
    if noise_std is None:
        black, white = (noise_std_of(physics, torch.full((1, 1, 1, 1), level)) for level in (0.0, 1.0))
        if black.numel() > 1 or not torch.equal(black, white):
            kind = type(physics.noise_model).__name__
            raise ConfigError(f"the noise of {kind} differs by image; give noise_std, or restore by FlashReconstructor")
        noise_std = black.item()
    return DegradationConfig("deepinv", {"physics": physics, "size": size}, noise_std)


def noise_std_of(physics: Physics, y_BCHW: Tensor) -> Tensor:
    """[B] standard deviations of the noise of measurements, on the [0, 1] scale.

    Poisson noise of gain γ has the variance γ A(x); its mean over an image is taken from y, which has the same mean.
    ConfigError for a noise model that is neither Gaussian nor Poisson noise, or that leaves photons as they are.
    """
    noise, kind = physics.noise_model, type(physics.noise_model).__name__
    if kind not in ("ZeroNoise", "GaussianNoise", "PoissonNoise", "PoissonGaussianNoise"):
        raise ConfigError(f"flashray does not know the standard deviation of {kind}; give noise_std")
    if not getattr(noise, "normalize", True):
        raise ConfigError(f"{kind} with normalize=False measures photons and no [0, 1] scale; give normalize=True")
    sigma_B, gain_B = (torch.as_tensor(getattr(noise, name, 0.0)).to(y_BCHW).flatten() for name in ("sigma", "gain"))
    mean_B = y_BCHW.flatten(1).mean(dim=1).clamp(min=0)
    return (sigma_B.square() + gain_B * mean_B).sqrt()


class FlashReconstructor(Reconstructor):
    """A recipe as deepinv's Reconstructor: its start, solver, fusion and prior, with the physics as the operator.

    σ̂ is that of the recipe's severity encoder, so the recipe should be one for similar damage.

    Args:
        recipe: a shipped recipe's name, the path of a recipe file, or a Recipe; its degradation is not used.
        device: of the models.
        noise_std: of the measurements on the [0, 1] scale; by default what the physics' noise model says.
        changes: keys of the recipe with new values, as in `flashray.load`.
    """

    restored: Restored  # the last call's NFE, σ̂ and maps of σ̂

    def __init__(
        self, recipe: str | Recipe, device: str = "cpu", noise_std: float | None = None, **changes: Any
    ) -> None:
        super().__init__()
        self.noise_std, restorer = noise_std, load(recipe, device, **changes)
        self.recipe, self.prior, self.encoder = restorer.recipe, restorer.prior, restorer.encoder

    def forward(self, y: Tensor, physics: Physics, **_: Any) -> Tensor:
        """[B, 3, H, W] images in [0, 1] of measurements [B, C, h, w]; the physics may have parameters for each.

        ConfigError for a physics, its measurements or a noise model that the recipe cannot use; FlashrayError where an
        image could not be restored.
        """
        count = len(y)
        check_measurement(physics, y, count)
        measured, first = y.float(), physics.clone().float()
        std_B = noise_std_of(first, measured) if self.noise_std is None else measured.new_tensor([self.noise_std])
        each = {name: value for name, value in parameters_of(first).items() if value.ndim and 1 < count == len(value)}
        first.update_parameters(**{name: value[:1] for name, value in each.items()})
        channels, *size = first.A_adjoint(measured[:1]).shape[1:] if hasattr(first, "A_adjoint") else (3, 0, 0)
        if channels != 3:
            why = f"is for images of {channels} channels, and a prior's have three"
            raise refused(physics, f"{why}; of a grey one give y.expand(-1, 3, -1, -1) and a physics of three channels")
        recipe = dataclasses.replace(self.recipe, degradation=degradation(first.cpu(), 0.0, (size[0], size[1]))).check()
        restorer = Restorer(recipe, self.prior, self.encoder)
        photos = [
            restorer.photo(str(n), 2 * measured[n] - 1, {name: value[n] for name, value in each.items()}, std.item())
            for n, std in enumerate(std_B.expand(count))
        ]
        self.restored = restorer.restore_photos(photos)
        if wrong := [error for error in self.restored.errors if error]:
            raise FlashrayError(f"{len(wrong)} of {count} images could not be restored: {wrong[0]}")
        return ((torch.stack([image for image in self.restored.images if image is not None]) + 1) / 2).to(y)
