"""Learned blur: the operator of "Exploring Image Deblurring via Encoded Blur Kernel Space" (Tran et al., CVPR 2021)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from flashray.degradations.base import Degradation, Limits, Operator, Parameters, between, check_range, draw_seeds
from flashray.errors import ConfigError
from flashray.seeding import STREAM_OPERATOR, normal

REDUCTION = 128  # of an image's side to its code's
LEVELS = 5  # of the adapter's U-Net


@dataclass(frozen=True)
class KernelWizard(Degradation):
    """y = G(x, k): a network that blurs x according to a random code k; Flash-Diffusion's nonlinear blur.

    The weights are not part of flashray: `weights` names the published checkpoint (GOPRO_wVAE.pth of
    VinAIResearch/blur-kernel-space-exploring) or the same tensors as safetensors:
    `save_file(torch.load("GOPRO_wVAE.pth", weights_only=True), "wizard.safetensors")`. Images have sides that are
    multiples of 128; the code has 1/128 of them.
    """

    weights: str = ""  # the checkpoint's file, at the same path on every machine
    strength: tuple[float, float] = (1.2, 1.2)  # the range of the code's scale (Flash-Diffusion: 1.2)
    # Flash-Diffusion's code brings [0, 1] images to [0.5, 1] before the network, and back after it: it blurs an image
    # of half the contrast, clamped. True does so too
    paper: bool = False

    name: ClassVar[str] = "kernel_wizard"
    linear: ClassVar[bool] = False
    parameter_names: ClassVar[tuple[str, ...]] = ("code_strength", "code_seed")
    limits: ClassVar[Limits] = {"code_strength": (0, 10, "standard deviations of the code")}

    def __post_init__(self) -> None:
        if not Path(self.weights).is_file():
            raise ConfigError(
                f"degradation kernel_wizard: weights {self.weights!r} is no file; name the published checkpoint, "
                "GOPRO_wVAE.pth of VinAIResearch/blur-kernel-space-exploring, or its tensors as safetensors"
            )
        check_range("kernel_wizard: strength", self.strength, 0, 10, "standard deviations of the code")

    def check_size(self, size: tuple[int, int]) -> None:
        code_size(size)
        self.check_weights()

    def check_weights(self) -> None:
        load_network(self.weights)

    def weights_sha256(self) -> str:
        return hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()

    def parameters_at(self, severity_B: Tensor, generator: torch.Generator | None = None) -> Parameters:
        seed_B = draw_seeds(generator, len(severity_B))
        return {"code_strength": between(*self.strength, severity_B), "code_seed": seed_B}

    def bind(self, parameters: Parameters, size: tuple[int, int]) -> LearnedBlur:
        strength_B, seed_B = parameters["code_strength"], parameters["code_seed"].long()
        network = load_network(self.weights, str(strength_B.device), strength_B.dtype)
        shape = (network.code_channels, *code_size(size))
        code = normal(seed_B, torch.zeros_like(seed_B), shape, STREAM_OPERATOR).to(strength_B)
        return LearnedBlur(network, strength_B[:, None, None, None] * code, self.paper)


@dataclass(frozen=True)
class LearnedBlur(Operator):
    """The operator of `KernelWizard`, bound to codes [B, 8 width, H/128, W/128]."""

    network: BlurGenerator
    code_BCHW: Tensor
    paper: bool

    def A(self, x_BCHW: Tensor) -> Tensor:
        unit = (x_BCHW + 1) / 2
        if self.paper:
            return 2 * (2 * self.network((unit + 1) / 2, self.code_BCHW) - 1).clamp(-1, 1) - 1
        return 2 * self.network(unit, self.code_BCHW) - 1


def code_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H/128, W/128); ConfigError where these are not whole."""
    if size[0] % REDUCTION or size[1] % REDUCTION:
        raise ConfigError(
            f"degradation kernel_wizard: an image of {size[1]} x {size[0]} has no whole code; its sides must be "
            f"multiples of {REDUCTION}"
        )
    return size[0] // REDUCTION, size[1] // REDUCTION


class Residual(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


def double_conv(channels: int, out: int) -> nn.Sequential:
    """Two convolutions, each with its activation."""
    first, second = nn.Conv2d(channels, out, 5, padding=2), nn.Conv2d(out, out, 5, padding=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class BlurGenerator(nn.Module):
    """G of Tran et al.: features at a quarter of the size, a U-Net that takes the code at its bottom, and back; + x.

    `width` is the features' number of channels, of which the code has eight times as many; `front` and `back` are the
    numbers of residual blocks before and after the U-Net.
    """

    def __init__(self, width: int = 64, front: int = 10, back: int = 20) -> None:
        super().__init__()
        self.code_channels = 8 * width
        sizes = [width, width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.head = nn.ModuleList(
            [nn.Conv2d(3, width, 3, padding=1), *(nn.Conv2d(width, width, 3, 2, padding=1) for _ in range(2))]
        )
        self.front = nn.Sequential(*(Residual(width) for _ in range(front)))
        self.down = nn.ModuleList(
            nn.Conv2d(outer, inner, 4, 2, padding=1, bias=False) for outer, inner in pairwise(sizes)
        )
        self.up = nn.ModuleList(double_conv(2 * inner, outer) for outer, inner in pairwise(sizes))
        self.back = nn.Sequential(*(Residual(width) for _ in range(back)))
        channels = ((width, 4 * width), (width, 256), (64, 64), (64, 3))
        self.tail = nn.ModuleList(nn.Conv2d(*one, 3, padding=1) for one in channels)

    def forward(self, x_BCHW: Tensor, code_BCHW: Tensor) -> Tensor:
        """The blurred images, on the scale of x, [0, 1]."""
        h = x_BCHW
        for conv in self.head:
            h = F.leaky_relu(conv(h), 0.1)
        h = self._adapt(self.front(h), code_BCHW)
        h = self.back(h)
        first, second, third, last = self.tail
        h = F.leaky_relu(F.pixel_shuffle(first(h), 2), 0.1)
        h = F.leaky_relu(F.pixel_shuffle(second(h), 2), 0.1)
        return x_BCHW + last(F.leaky_relu(third(h), 0.1))

    def _adapt(self, h: Tensor, code_BCHW: Tensor) -> Tensor:
        h = self.down[0](h)
        skips = []
        for down in self.down[1:]:
            h = F.leaky_relu(h, 0.2)
            skips.append(h)  # after the activation, which was in place when the weights were trained
            h = down(h)
        h = torch.cat([h, code_BCHW], dim=1)
        for up in reversed(self.up):
            h = F.interpolate(up(F.relu(h)), scale_factor=2, mode="bilinear", align_corners=True)
            if skips:
                h = torch.cat([h, skips.pop()], dim=1)
        return h.tanh()


def published_names(front: int, back: int) -> dict[str, str]:
    """The published checkpoint's module names, by ours."""
    names = {f"head.{i}": f"feature_extractor.{2 * i}" for i in range(3)}
    names |= {f"front.{i}.conv{c}": f"feature_extractor.{6 + i}.conv{c}" for i in range(front) for c in (1, 2)}
    for level in range(LEVELS):
        block = "adapter.model" + ".submodule" * level
        names[f"down.{level}"] = f"{block}.down.{min(level, 1)}"
        names |= {f"up.{level}.{c}": f"{block}.up.1.double_conv.{c}" for c in (0, 2)}
    names |= {f"back.{i}.conv{c}": f"recon_trunk.{i}.conv{c}" for i in range(back) for c in (1, 2)}
    return names | {f"tail.{i}": f"recon_trunk.{back + place}" for i, place in enumerate((0, 3, 6, 8))}


@lru_cache(maxsize=4)
def load_network(weights: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> BlurGenerator:
    """The generator of a checkpoint, frozen; ConfigError where the file does not hold one."""
    try:
        if weights.endswith(".safetensors"):
            tensors: Mapping[str, Tensor] = load_file(weights)
        else:
            tensors = torch.load(weights, map_location="cpu", weights_only=True)
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        front, back = (
            len({name.split(".")[1] for name in tensors if name.startswith(part) and ".conv1." in name})
            for part in ("feature_extractor.", "recon_trunk.")
        )
        network = BlurGenerator(len(tensors["feature_extractor.0.weight"]), front, back)
        names = published_names(front, back)
        state = {}
        for name in network.state_dict():
            module, _, kind = name.rpartition(".")
            state[name] = tensors[f"{names[module]}.{kind}"]
        network.load_state_dict(state)
    except Exception as error:  # unpickling and foreign files fail in any way
        raise ConfigError(
            f"degradation kernel_wizard: {weights} does not hold the published generator ({type(error).__name__}: "
            f"{error})"
        ) from error
    return network.to(device, dtype).eval().requires_grad_(False)
