"""Physics of deepinv to try things with, and broken ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepinv
import torch
from deepinv import physics as P
from deepinv.physics.functional import gaussian_blur
from deepinv.physics.generator import MotionBlurGenerator, TiledBlurGenerator
from torch import Tensor

SIDE = 64


def tiled_blur(side: int = SIDE, psf: int = 9, seed: int = 0) -> Any:
    """A blur of camera motion that differs between tiles of half the image."""
    tiles = {"patch_size": (side // 2, side // 2), "stride": (side // 4, side // 4)}
    generator = TiledBlurGenerator(psf_generator=MotionBlurGenerator(psf_size=(psf, psf)), **tiles)
    filters = generator.step(batch_size=1, img_size=(side, side), seed=seed)["filters"]
    return P.TiledSpaceVaryingBlur(filters=filters, **tiles)


def mask(share: float = 0.5, seed: int = 0, side: int = SIDE) -> Tensor:
    """[1, 1, side, side], 1 where a pixel is known."""
    return (torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(seed)) > share).float()


def inpainting(share: float = 0.5, seed: int = 0, side: int = SIDE) -> Any:
    return P.Inpainting((3, side, side), mask=mask(share, seed, side)[0])


LINEAR: dict[str, Callable[[], Any]] = {
    "blur": lambda: P.Blur(gaussian_blur(sigma=(1.5, 1.5)), padding="circular"),
    "blur, cut": lambda: P.Blur(gaussian_blur(sigma=(1.5, 1.5)), padding="valid"),
    "blur, Fourier": lambda: P.BlurFFT((3, SIDE, SIDE), gaussian_blur(sigma=(1.5, 1.5))),
    "downsampling, bicubic": lambda: P.Downsampling(filter="bicubic", factor=4),
    "downsampling, gaussian": lambda: P.Downsampling((3, SIDE, SIDE), filter="gaussian", factor=2),
    "inpainting": inpainting,
    "demosaicing": lambda: P.Demosaicing((SIDE, SIDE)),
    "tiled blur": tiled_blur,
    "decolorize": P.Decolorize,
    "denoising": P.Denoising,
    "composed": lambda: inpainting() * P.Blur(gaussian_blur(sigma=(1.0, 1.0)), padding="circular"),
}


class Squares(deepinv.physics.Physics):
    """strength · x², with a derivative of its own."""

    def __init__(self, strength: float = 0.8) -> None:
        super().__init__()
        self.register_buffer("strength", torch.tensor([strength]))
        self.asked = 0

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        self.update_parameters(**kwargs)
        return self.strength[:, None, None, None] * x.square()

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        self.asked += 1
        return 2 * self.strength[:, None, None, None] * x * v


class OfNoise(deepinv.physics.NoiseModel):
    """Keeps as many columns as chance says."""

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return x[..., : int(torch.randint(1, x.shape[-1], ()))]


class Drawn(deepinv.physics.LinearPhysics):
    """Another mask each time."""

    def A(self, x: Tensor, **_: Any) -> Tensor:
        return x * (torch.rand_like(x) > 0.5)


def flipped() -> Any:
    """A convolution whose adjoint is said to be itself."""
    kernel = torch.tensor([[0.0, 0.0, 0.7], [0.0, 0.2, 0.1], [0.0, 0.0, 0.0]]).expand(3, 1, 3, 3)

    def convolve(x: Tensor, **_: Any) -> Tensor:
        return torch.nn.functional.conv2d(x, kernel, padding=1, groups=3)

    return P.LinearPhysics(A=convolve, A_adjoint=convolve)


BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "shape of the noise": (
        lambda: P.Denoising(OfNoise()),
        r"Denoising measures \[3, 128, 128\] without noise and .* with it",
    ),
    "adjoint": (flipped, "LinearPhysics fails the dot test by .*A_adjoint is not A's adjoint"),
    "no adjoint": (lambda: P.LinearPhysics(A=lambda x, **_: 2 * x), "LinearPhysics has no adjoint"),
    "offset": (
        lambda: P.LinearPhysics(A=lambda x, **_: x + 1, A_adjoint=lambda y, **_: y),
        "LinearPhysics fails the dot test",
    ),
    "random": (lambda: Drawn(A_adjoint=lambda y, **_: y), "Drawn measures the same image differently each time"),
    "steps": (
        lambda: P.Physics(A=lambda x, **_: (8 * x).round() / 8),
        "Physics fails the dot test .*not differentiable",
    ),
    "numbers": (
        lambda: P.Physics(A=lambda x, **_: torch.from_numpy(x.detach().numpy() ** 2)),
        "Physics has no derivat",
    ),
    "vectors": (lambda: P.CompressedSensing(m=10, img_size=(3, 16, 16)), r"CompressedSensing measures .*\[1, 10\]"),
    "stacked": (lambda: P.Denoising().stack(P.Denoising()), "StackedLinearPhysics measures TensorList"),
    "no filter yet": (P.Blur, "Blur cannot measure an image of 128 x 128: .*filter"),
    "size": (lambda: P.Physics(A=lambda x, **_: x[..., ::2]), "Physics changes an image's size .*give size"),
}
