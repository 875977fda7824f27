"""The family `photo`: the unknown mixture of damage that real photos went through, or none at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.degradations.base import Degradation, Limits, Operator, Parameters, between, draw_seeds
from flashray.degradations.jpeg import CHROMA, LUMA, Codec, quantisation
from flashray.degradations.motion_blur import draw_kernel, motion_path
from flashray.degradations.separable import reflection
from flashray.errors import ConfigError
from flashray.seeding import STREAM_MEASUREMENT, STREAM_OPERATOR, normal, uniform

KERNEL = 21  # side of the blur kernels
SCALES = (1.0, 0.75, 0.5, 1 / 3, 0.25)  # an image is made smaller by one of them, and large again
UNIFORMS = 28  # random numbers that decide one image's damage

# At the hardest
BLUR_STD = 3.0  # pixels
MOTION = 14.0  # pixels
NOISE_STD = 0.12  # on [0, 1]
PHOTONS = 30.0  # at white, for the strongest Poisson noise
QUALITY = (95.0, 10.0)  # JPEG at the mildest and at the hardest
SPREAD = 0.4  # share of the images whose noise is spread over neighbours
SPREAD_STD = (0.4, 1.2)  # pixels, of the Gaussian that spreads it
# Shares of the images with each kind of damage, and with a second round of noise and JPEG
BLURRED, SCALED, NOISY, PHOTON_NOISE, COMPRESSED, AGAIN = 0.65, 0.4, 0.6, 0.3, 0.6, 0.2
# Where one kind is alone: its share, and which of the random numbers become what; of blur, 0 decides what kind it is
ALONE = (
    (0.2, {21: 1.0}),  # blur
    (0.15, {1: 0.0, 2: 0.0}),  # down- and upscaling
    (0.25, {5: 0.0, 6: 1.0}),  # Gaussian noise
    (0.4, {9: 0.0, 8: 1.0}),  # JPEG
)


@dataclass(frozen=True)
class Photo(Degradation):
    """Blur (Gaussian, round or not; motion), down- and upscaling, Gaussian and Poisson noise, JPEG, each or none.

    Every kind of damage has its own chance and strength; the severity bounds all strengths, and severity 0 is no
    damage at all. Blur and scaling come in either order; noise follows, white or spread over neighbours as a camera's
    demosaicing leaves it, then JPEG, and in some images a second, milder round of noise and JPEG, as when a picture is
    passed on. In some images the damage ends somewhere: a part is sharp. In a share `alone` there is one kind
    of damage, as strong as the severity says.
    The same numbers damage an image of any size; solvers cannot use this operator, because nobody knows it.

    Parameters of an image that is damaged here: `damage`, its severity 0 … 1, and `damage_seed`. A photo that came
    damaged has none.
    """

    damage: tuple[float, float] = (0.0, 1.0)  # the range of severities
    undamaged: float = 0.15  # share of the images, when severities are drawn, that have none
    partial: float = 0.2  # share of the damaged images that have a sharp part
    alone: float = 0.0  # share of the damaged images with one kind of damage alone

    name: ClassVar[str] = "photo"
    linear: ClassVar[bool] = False
    unknown: ClassVar[bool] = True
    parameter_names: ClassVar[tuple[str, ...]] = ("damage", "damage_seed")
    limits: ClassVar[Limits] = {"damage": (0, 1, "shares of the hardest")}

    def __post_init__(self) -> None:
        low, high = self.damage
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"degradation photo: damage is {list(self.damage)}; give [low, high] within 0 … 1")
        for name in ("undamaged", "partial", "alone"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"degradation photo: {name} is {getattr(self, name)}; give a share from 0 to 1")

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        low, high = self.damage
        return {"damage": between(low, high, severity_B), "damage_seed": draw_seeds(generator, len(severity_B))}

    def sample_parameters(self, generator: torch.Generator, n: int) -> Parameters:
        spared_B = torch.rand(n, generator=generator) < self.undamaged
        drawn = self.parameters_at(torch.rand(n, generator=generator), generator)
        return drawn | {"damage": drawn["damage"].masked_fill(spared_B, 0.0)}

    def fixed_parameters(self) -> Parameters:
        return {}

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> Operator:
        if not parameters:
            return UnknownDamage()
        return PhotoDamage(parameters["damage"], parameters["damage_seed"], self.partial, self.alone)


@dataclass(frozen=True)
class UnknownDamage(Operator):
    """The operator of photos that came damaged: A(x) is x, since nobody knows better."""

    def A(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW


@dataclass(frozen=True)
class PhotoDamage(Operator):
    """The operator of `Photo`, noise included; a function of (severity, seed) alone."""

    level_B: Tensor
    seed_B: Tensor
    partial: float
    alone: float = 0.0

    def A(self, x_BCHW: Tensor) -> Tensor:
        u_BN = only_one_kind(uniform(self.seed_B, UNIFORMS, STREAM_OPERATOR).to(x_BCHW), self.alone)
        level = self.level_B.to(x_BCHW)
        blurred_B, scaled_B = u_BN[:, 0] < BLURRED, u_BN[:, 1] < SCALED
        kernel_BKK = self._kernel(level, u_BN)
        scale_B = 1 - (1 - 0.9 * u_BN[:, 2]) * level

        def blur(image: Tensor) -> Tensor:
            return torch.where(_wide(blurred_B), convolve(image, kernel_BKK), image)

        def scale(image: Tensor) -> Tensor:
            return torch.where(_wide(scaled_B), rescale(image, scale_B), image)

        first = _wide(u_BN[:, 3] < 0.5)
        y = torch.where(first, scale(blur(x_BCHW)), blur(scale(x_BCHW)))
        spread_B55 = spreading(torch.where(u_BN[:, 24] < SPREAD, between(*SPREAD_STD, u_BN[:, 25]), 0.0))
        y = self._noise_and_jpeg(y, level, u_BN[:, 4:10], spread_B55, 0)
        again = _wide(u_BN[:, 16] < AGAIN)
        y = torch.where(again, self._noise_and_jpeg(y, 0.5 * level, u_BN[:, 10:16], spread_B55, 1), y).clamp(-1, 1)
        share = self._sharp_part(u_BN[:, 17:21], (x_BCHW.shape[2], x_BCHW.shape[3]))
        damaged = torch.lerp(y, x_BCHW, share)
        return torch.where(_wide(self.level_B > 0), damaged, x_BCHW)

    def _kernel(self, level_B: Tensor, u_BN: Tensor) -> Tensor:
        """[B, K, K]: a Gaussian, round in half of the images, or a motion's path."""
        std_B = level_B * BLUR_STD * u_BN[:, 21].clamp(min=0.03)
        ratio_B = torch.where(u_BN[:, 22] < 0.5, 1.0, 0.3 + 1.4 * (u_BN[:, 22] - 0.5))
        turn_B = math.pi * u_BN[:, 23]
        offset = torch.arange(KERNEL, device=u_BN.device, dtype=u_BN.dtype) - KERNEL // 2
        row, column = offset[:, None], offset[None, :]
        cos, sin = turn_B.cos()[:, None, None], turn_B.sin()[:, None, None]
        along, across = cos * column + sin * row, cos * row - sin * column
        variance = std_B.square().clamp(min=1e-4)[:, None, None]
        other = (std_B * ratio_B).square().clamp(min=1e-4)[:, None, None]
        gaussian = torch.exp(-0.5 * (along.square() / variance + across.square() / other))
        gaussian = gaussian / gaussian.sum(dim=(1, 2), keepdim=True)
        path = motion_path(level_B * MOTION * u_BN[:, 21], 360 * u_BN[:, 23], self.seed_B.to(u_BN))
        moving = (u_BN[:, 0] > 0.5)[:, None, None]  # of the blurred ones, those below BLURRED
        return torch.where(moving, draw_kernel(path, KERNEL), gaussian)

    def _noise_and_jpeg(self, y_BCHW: Tensor, level_B: Tensor, u_BN: Tensor, spread_B55: Tensor, round_: int) -> Tensor:
        """Gaussian noise (in colour or grey), Poisson noise, JPEG."""
        step_B = torch.full_like(self.seed_B, round_).long()
        noise = normal(self.seed_B.long(), step_B, tuple(y_BCHW.shape[1:]), STREAM_MEASUREMENT).to(y_BCHW)
        noise = convolve(noise, spread_B55)
        grey = _wide(u_BN[:, 0] < 0.3)
        noise = torch.where(grey, noise[:, :1], noise)
        gaussian_B = torch.where(u_BN[:, 1] < NOISY, level_B * NOISE_STD * u_BN[:, 2], 0.0)
        photons_B = torch.where(
            u_BN[:, 3] < PHOTON_NOISE, (level_B * u_BN[:, 3] / PHOTON_NOISE).square() / PHOTONS, 0.0
        )
        variance = _wide(gaussian_B.square()) + _wide(photons_B) * ((y_BCHW + 1) / 2).clamp(0, 1)
        y = (y_BCHW + 2 * variance.sqrt() * noise).clamp(-1, 1)
        low, high = QUALITY
        quality_B = low + (high - low) * level_B * u_BN[:, 4]
        codec = Codec(quantisation(quality_B, LUMA), quantisation(quality_B, CHROMA), True)
        return torch.where(_wide(u_BN[:, 5] < COMPRESSED), codec.A(y), y)

    def _sharp_part(self, u_BN: Tensor, size: tuple[int, int]) -> Tensor:
        """[B, 1, H, W] share of the sharp image: 1 on one side of a line, 0 beyond a soft edge; 0 in most images."""
        row = torch.linspace(-1, 1, size[0], device=u_BN.device, dtype=u_BN.dtype)[:, None]
        column = torch.linspace(-1, 1, size[1], device=u_BN.device, dtype=u_BN.dtype)[None, :]
        angle = _wide(2 * math.pi * u_BN[:, 1])
        distance = angle.cos() * column + angle.sin() * row - _wide(u_BN[:, 2] - 0.5)
        sharp = torch.sigmoid(distance / _wide(0.02 + 0.2 * u_BN[:, 3]))
        return torch.where(_wide(u_BN[:, 0] < self.partial), sharp, 0.0)


def only_one_kind(u_BN: Tensor, share: float) -> Tensor:
    """The random numbers of `PhotoDamage`, changed in a share of the images so that one kind of damage is alone.

    That kind is certain and as strong as the severity allows, and the chances of the others do not come true.
    """
    if not share:
        return u_BN
    none, blur_alone = u_BN.clone(), u_BN[:, 27] < ALONE[0][0]
    none[:, [1, 5, 7, 9, 16]] = 1.0  # no scaling, noise of either kind, JPEG, second round
    none[:, 0] = torch.where(blur_alone, BLURRED * u_BN[:, 0], 1.0)
    high = 0.0
    for chance, numbers in ALONE:
        low, high = high, high + chance
        here_B = (low <= u_BN[:, 27]) & (u_BN[:, 27] < high)
        for index, value in numbers.items():
            none[:, index] = torch.where(here_B, value, none[:, index])
    return torch.where(u_BN[:, 26:27] < share, none, u_BN)


def spreading(std_B: Tensor) -> Tensor:
    """[B, 5, 5] Gaussian kernels (std in pixels) that leave white noise its variance; std 0 leaves it as it is."""
    offset = torch.arange(-2, 3, device=std_B.device, dtype=std_B.dtype)
    weight_B5 = torch.exp(-0.5 * offset.square() / std_B.square().clamp(min=1e-4)[:, None])
    kernel_B55 = weight_B5[:, :, None] * weight_B5[:, None, :]
    return kernel_B55 / kernel_B55.square().sum(dim=(1, 2), keepdim=True).sqrt()


def convolve(x_BCHW: Tensor, kernel_BKK: Tensor) -> Tensor:
    """Every image with its own kernel, its border reflected."""
    radius = kernel_BKK.shape[1] // 2
    for dim in (2, 3):
        source = reflection(x_BCHW.shape[dim], radius, x_BCHW.device)
        x_BCHW = x_BCHW.index_select(dim, source.abs() % max(1, x_BCHW.shape[dim]))
    batch, channels = x_BCHW.shape[:2]
    padded = x_BCHW.transpose(0, 1)  # one group an image
    return (
        F.conv2d(padded, kernel_BKK[:, None].to(x_BCHW), groups=batch)
        .transpose(0, 1)
        .reshape(batch, channels, *(side - 2 * radius for side in x_BCHW.shape[2:]))
    )


def rescale(x_BCHW: Tensor, scale_B: Tensor) -> Tensor:
    """Each image made smaller by the nearest of SCALES, with antialiasing, and large again."""
    known = torch.tensor(SCALES, device=scale_B.device)
    nearest_B = (scale_B[:, None] - known).abs().argmin(dim=1)
    size = (x_BCHW.shape[2], x_BCHW.shape[3])
    result = x_BCHW
    for index, scale in enumerate(SCALES[1:], start=1):
        small = [max(1, round(side * scale)) for side in size]
        resize: Callable[..., Tensor] = F.interpolate
        low = resize(x_BCHW, size=small, mode="bilinear", antialias=True, align_corners=False)
        large = resize(low, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
        result = torch.where(_wide(nearest_B == index), large, result)
    return result


def _wide(value_B: Tensor) -> Tensor:
    return value_B[:, None, None, None]
