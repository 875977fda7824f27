"""Nonlinear blur: a shaken camera, from the scene's light to pixel values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flashray.degradations.base import Degradation, Limits, Operator, Parameters, between, check_range, draw_seeds
from flashray.errors import ConfigError
from flashray.seeding import STREAM_OPERATOR, uniform

TOE = 0.055  # of the response curve: keeps its slope finite at black
SHARPNESS = 20.0  # of the sensor's saturation


@dataclass(frozen=True)
class NonlinearBlur(Degradation):
    """A camera that moves while its shutter is open: pixel values → light, motion blur, saturation → pixel values.

    With ℓ the inverse of the response curve r, a gamma with a linear toe:
    L = ℓ(x)(1 + highlights ℓ(x)⁴): scenes have brighter lights than pixel values can express;
    M = mean over k of L moved along the camera's path p_k: shift, curve and roll, so each region has its own kernel;
    y = r(M - log(1 + exp(s(M - 1)))/s), a soft minimum of M and 1.

    It needs no weights, is smooth, and spreads bright parts over dark ones, unlike a convolution of pixel values. The
    ingredients are those of the deblurring literature (saturated highlights: Cho et al., ICCV 2011; camera shake with
    rotation: Whyte et al., CVPR 2010; response curves: Nah et al., CVPR 2017); Flash-Diffusion uses a learned
    operator in its place (`kernel_wizard`).
    """

    motion: tuple[float, float] = (0.5, 10.0)  # the range of the path's length in pixels
    highlights: float = 1.0  # how much brighter than white the scene behind white pixels is
    gamma: float = 2.2  # of the response curve
    frames: int = 16  # positions of the camera that are averaged

    name: ClassVar[str] = "nonlinear_blur"
    linear: ClassVar[bool] = False
    parameter_names: ClassVar[tuple[str, ...]] = ("motion", "motion_seed")
    limits: ClassVar[Limits] = {"motion": (0, math.inf, "pixels")}

    def __post_init__(self) -> None:
        check_range("nonlinear_blur: motion", self.motion, 0, math.inf, "pixels")
        if not (0 <= self.highlights < math.inf and 1 <= self.gamma < math.inf):
            raise ConfigError(
                f"degradation nonlinear_blur: highlights is {self.highlights} and gamma {self.gamma}; "
                "give highlights ≥ 0 and gamma ≥ 1"
            )
        if not isinstance(self.frames, int) or self.frames < 2:
            raise ConfigError(f"degradation nonlinear_blur: frames is {self.frames}; give a whole number ≥ 2")

    def check_size(self, size: tuple[int, int]) -> None:
        if self.motion[1] > min(size) / 2:
            raise ConfigError(
                f"degradation nonlinear_blur: a motion of {self.motion[1]:g} pixels is more than half of an image of "
                f"{size[1]} x {size[0]}; give less"
            )

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        seed_B = draw_seeds(generator, len(severity_B))
        return {"motion": between(*self.motion, severity_B), "motion_seed": seed_B}

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> CameraBlur:
        path = camera_path(parameters["motion"], parameters["motion_seed"], self.frames, size)
        return CameraBlur(path, self.highlights, self.gamma)


@dataclass(frozen=True)
class CameraBlur(Operator):
    """The operator of `NonlinearBlur`; `path_BK23` are the K affine maps that the camera's positions apply."""

    path_BK23: Tensor
    highlights: float
    gamma: float

    def A(self, x_BCHW: Tensor) -> Tensor:
        light = to_light((x_BCHW + 1) / 2, self.gamma)
        light = light * (1 + self.highlights * light.pow(4))
        moved = [move(light, path_B23) for path_B23 in self.path_BK23.unbind(1)]
        return 2 * to_pixels(saturate(torch.stack(moved).mean(dim=0)), self.gamma) - 1


def to_light(x: Tensor, gamma: float) -> Tensor:
    """ℓ: pixel values to light, odd and increasing, so that values below black keep a gradient; ℓ(0) = 0, ℓ(1) = 1."""
    black, white = TOE**gamma, (1 + TOE) ** gamma
    sign, magnitude = split_sign(x)
    return sign * ((magnitude + TOE).pow(gamma) - black) / (white - black)


def to_pixels(light: Tensor, gamma: float) -> Tensor:
    """r: the inverse of `to_light`."""
    black, white = TOE**gamma, (1 + TOE) ** gamma
    sign, magnitude = split_sign(light)
    return sign * ((magnitude * (white - black) + black).pow(1 / gamma) - TOE)


def split_sign(x: Tensor) -> tuple[Tensor, Tensor]:
    """(1 or -1, |x|) with a derivative of 1 at 0, where those of `sign` and `abs` are 0: restored blacks lie there."""
    sign = torch.where(x < 0, -1.0, 1.0).to(x)
    return sign, sign * x


def saturate(light: Tensor) -> Tensor:
    """A soft minimum of light and 1: the saturation of the sensor."""
    return light - F.softplus(SHARPNESS * (light - 1)) / SHARPNESS


def move(x_BCHW: Tensor, path_B23: Tensor) -> Tensor:
    """Images seen through affine maps of normalised coordinates: bilinear, the border reflected."""
    grid_BHW2 = F.affine_grid(path_B23, list(x_BCHW.shape), align_corners=False).to(x_BCHW)
    return Move.apply(x_BCHW, grid_BHW2, False)


class Move(torch.autograd.Function):
    """`grid_sample`, or its transpose, as a linear map with a forward-mode derivative, which PyTorch's own lacks."""

    @staticmethod
    def forward(x_BCHW: Tensor, grid_BHW2: Tensor, transposed: bool) -> Tensor:
        if not transposed:
            return F.grid_sample(x_BCHW, grid_BHW2, mode="bilinear", padding_mode="reflection", align_corners=False)
        bilinear, reflection, wanted = 0, 2, [True, False]
        zeros = torch.zeros_like(x_BCHW)
        backward = torch.ops.aten.grid_sampler_2d_backward
        return backward(x_BCHW.contiguous(), zeros, grid_BHW2, bilinear, reflection, False, wanted)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, grid_BHW2, ctx.transposed = inputs
        ctx.save_for_backward(grid_BHW2)
        ctx.save_for_forward(grid_BHW2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return Move.apply(gradients[0], *ctx.saved_tensors, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return Move.apply(tangents[0], *ctx.saved_tensors, ctx.transposed)


def camera_path(motion_B: Tensor, seed_B: Tensor, frames: int, size: tuple[int, int]) -> Tensor:
    """[B, K, 2, 3] maps (`affine_grid`'s convention) of K camera positions along paths `motion` pixels long.

    A path is a straight shift in a random direction, bent sideways by up to a third of its length, while the camera
    rolls about a random point within the frame so far that the image's corners move up to `motion` pixels more.
    """
    height, width = size
    u_BN = uniform(seed_B, 5, STREAM_OPERATOR).to(motion_B.dtype)
    direction_B = 2 * math.pi * u_BN[:, 0]
    bend_B, roll_B = 2 * u_BN[:, 1] - 1, 2 * u_BN[:, 2] - 1
    centre_B2 = u_BN[:, 3:5] - 0.5  # from the middle of the frame, in sides
    time_K = torch.linspace(-0.5, 0.5, frames, dtype=motion_B.dtype, device=motion_B.device)

    along_BK = motion_B[:, None] * time_K
    aside_BK = motion_B[:, None] * bend_B[:, None] * (4 / 3) * (time_K.square() - time_K.square().mean())
    cos_B1, sin_B1 = direction_B.cos()[:, None], direction_B.sin()[:, None]
    x_BK, y_BK = along_BK * cos_B1 - aside_BK * sin_B1, along_BK * sin_B1 + aside_BK * cos_B1  # pixels
    angle_BK = roll_B[:, None] * along_BK / (math.hypot(height, width) / 2)

    cos_BK, sin_BK = angle_BK.cos(), angle_BK.sin()
    centre_x, centre_y = centre_B2[:, :1] * width, centre_B2[:, 1:] * height
    x_BK = x_BK + centre_x - cos_BK * centre_x + sin_BK * centre_y
    y_BK = y_BK + centre_y - sin_BK * centre_x - cos_BK * centre_y
    # pixels from the middle → coordinates that are ±1 at the borders
    first = torch.stack([cos_BK, -sin_BK * height / width, 2 * x_BK / width], dim=-1)
    second = torch.stack([sin_BK * width / height, cos_BK, 2 * y_BK / height], dim=-1)
    return torch.stack([first, second], dim=-2)
