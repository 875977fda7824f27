"""Motion blur: the kernel of a moving camera, along a line or a random path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flashray.degradations.base import (
    AffineOperator,
    Degradation,
    Limits,
    Parameters,
    between,
    check_range,
    check_values,
    draw_seeds,
)
from flashray.degradations.separable import reflection
from flashray.errors import ConfigError
from flashray.seeding import STREAM_OPERATOR, uniform

POINTS = 128  # of a path
WAVES = 3  # of a path's turning


@dataclass(frozen=True)
class MotionBlur(Degradation):
    """Convolution with the path that a point takes during the exposure, reflect padding.

    Parameters of an image: `motion_length`, the path's length in pixels; `motion_angle`, its (first) direction in
    degrees from the right, downwards; `motion_seed`, 0 for a straight line, else the seed of a smooth random path.
    """

    length: tuple[float, float] = (2.0, 20.0)  # the range of the path's length in pixels
    # linear, or random (a smooth path with random turns, another one for each image)
    path: Literal["linear", "random"] = "linear"
    kernel_size: int = 31  # odd, and larger than the longest path

    name: ClassVar[str] = "motion_blur"
    linear: ClassVar[bool] = True
    parameter_names: ClassVar[tuple[str, ...]] = ("motion_length", "motion_angle", "motion_seed")
    limits: ClassVar[Limits] = {"motion_angle": (-math.inf, math.inf, "degrees")}

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_size, int) or self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ConfigError(f"degradation motion_blur: kernel_size is {self.kernel_size}; give an odd number ≥ 3")
        check_range("motion_blur: length", self.length, 0, self.kernel_size - 1, "pixels, less than kernel_size")
        if self.path not in ("linear", "random"):
            raise ConfigError(f"degradation motion_blur: path is {self.path!r}; give linear or random")

    def check_size(self, size: tuple[int, int]) -> None:
        if self.kernel_size > min(size):
            raise ConfigError(
                f"degradation motion_blur: a kernel of {self.kernel_size} pixels is larger than an image of "
                f"{size[1]} x {size[0]}; give a smaller kernel_size"
            )

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        n = len(severity_B)
        turn_B = torch.zeros(n) if generator is None else torch.rand(n, generator=generator)
        seed_B = torch.zeros(n)
        if self.path == "random":
            seed_B = draw_seeds(generator, n).clamp(min=1)
        return {
            "motion_length": between(*self.length, severity_B),
            "motion_angle": turn_B * (180 if self.path == "linear" else 360),
            "motion_seed": seed_B,
        }

    def check_parameters(self, parameters: Parameters) -> None:
        super().check_parameters(parameters)
        most = self.kernel_size - 1
        check_values(
            "motion_blur: motion_length", parameters["motion_length"], 0, most, "pixels, less than kernel_size"
        )

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> KernelBlur:
        path = motion_path(*(parameters[name] for name in self.parameter_names))
        return KernelBlur.of(draw_kernel(path, self.kernel_size), size)


@dataclass(frozen=True)
class KernelBlur(AffineOperator):
    """y = crop(k ⋆ pad(x)), the same kernel in every channel; Aᵀ y = fold(k * embed(y)), fold being padᵀ, is exact."""

    spectrum_BNF: Tensor  # kernels in the Fourier domain at the padded size
    radius: int  # half a kernel's side, and so the padding

    @classmethod
    def of(cls, kernel_BKK: Tensor, size: tuple[int, int]) -> KernelBlur:
        """The blur of images of size (H, W) with kernels of odd side K ≤ 2 min(H, W) - 1; ConfigError if larger."""
        radius = kernel_BKK.shape[1] // 2
        if radius >= min(size):
            raise ConfigError(
                f"a kernel of {kernel_BKK.shape[1]} pixels does not fit an image of {size[1]} x {size[0]}: reflect "
                "padding cannot be wider than the image; give a smaller kernel"
            )
        padded = (size[0] + 2 * radius, size[1] + 2 * radius)
        return cls(torch.fft.rfft2(kernel_BKK, s=padded), radius)

    def A_linear(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        for dim in (2, 3):
            x_BCHW = x_BCHW.index_select(dim, reflection(x_BCHW.shape[dim], self.radius, x_BCHW.device))
        # the conjugate makes it a correlation, whose first H x W values do not wrap around
        blurred = torch.fft.rfft2(x_BCHW) * self.spectrum_BNF[:, None].conj()
        return torch.fft.irfft2(blurred, s=x_BCHW.shape[2:])[..., :height, :width]

    def A_adjoint(self, y_BCHW: Tensor) -> Tensor:
        size = y_BCHW.shape[2:]
        padded = tuple(side + 2 * self.radius for side in size)
        x = torch.fft.irfft2(torch.fft.rfft2(y_BCHW, s=padded) * self.spectrum_BNF[:, None], s=padded)
        for dim in (2, 3):
            shape = list(x.shape)
            shape[dim] = size[dim - 2]
            x = x.new_zeros(shape).index_add(dim, reflection(size[dim - 2], self.radius, x.device), x)
        return x


def motion_path(length_B: Tensor, angle_B: Tensor, seed_B: Tensor) -> Tensor:
    """[B, POINTS, 2] points (row, column) of paths, from the middle of the box that holds them, in pixels.

    Along the path the direction is angle + Σ_j a_j sin(2π j t + φ_j), a smooth curve of the given length.
    """
    dtype, device = length_B.dtype, length_B.device
    time_P = (torch.arange(POINTS - 1, dtype=dtype, device=device) + 0.5) / (POINTS - 1)
    u_BN = uniform(seed_B, 2 * WAVES, STREAM_OPERATOR).to(dtype)
    wave_J = torch.arange(1, WAVES + 1, dtype=dtype, device=device)
    swing_BJ = (2 * math.pi) * (2 * u_BN[:, :WAVES] - 1) / wave_J * (seed_B[:, None] > 0)
    phase_BJP = 2 * math.pi * (wave_J[:, None] * time_P + u_BN[:, WAVES:, None])
    direction_BP = torch.deg2rad(angle_B)[:, None] + (swing_BJ[:, :, None] * phase_BJP.sin()).sum(dim=1)
    step_BP2 = torch.stack([direction_BP.sin(), direction_BP.cos()], dim=2) * (length_B / (POINTS - 1))[:, None, None]
    path_BP2 = torch.cat([torch.zeros_like(step_BP2[:, :1]), step_BP2.cumsum(dim=1)], dim=1)
    return path_BP2 - (path_BP2.amin(dim=1, keepdim=True) + path_BP2.amax(dim=1, keepdim=True)) / 2


def draw_kernel(path_BP2: Tensor, side: int) -> Tensor:
    """[B, side, side] kernels that sum to one: each point's weight is shared by the four pixels around it."""
    where_BP2 = path_BP2 + side // 2
    first = where_BP2.floor().clamp(0, side - 2)
    share = where_BP2 - first
    kernel = path_BP2.new_zeros(len(path_BP2), side * side)
    for down in (0, 1):
        for right in (0, 1):
            weight = (share[..., 0] if down else 1 - share[..., 0]) * (share[..., 1] if right else 1 - share[..., 1])
            place = (first[..., 0] + down) * side + first[..., 1] + right
            kernel = kernel.scatter_add(1, place.long(), weight)
    return kernel.reshape(-1, side, side) / path_BP2.shape[1]
