"""LPIPS v0.1, the learned perceptual distance (Zhang et al., CVPR 2018), exact and without torchvision.

The distance of two images: their ImageNet features at five depths, each feature vector scaled to unit length, the
squared differences weighted by a learned head, averaged over space and summed over depths. 0 for equal images.

The weights come from a safetensors file that the user names (backbone under torchvision's names `features.N.weight`
and `.bias`, optionally heads `linK.weight`); the heads otherwise from the torchmetrics package, the backbone otherwise
from the public checkpoint through torch.hub's cache. Without any of them the metric is unavailable and says why.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise, product
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flashray.errors import FlashrayError

Net = Literal["vgg", "alex"]
WEIGHTS_VARIABLE = "FLASHRAY_LPIPS_WEIGHTS"
REMEDY = f"name a safetensors file, or a folder of such files, with {WEIGHTS_VARIABLE}"
_CHECKPOINTS = "https://download.pytorch.org/models"
_TILE = 512  # pixels to a side; like the halo a multiple of 16, VGG's pooling
_HALO = 112  # pixels around a tile: VGG's last tap looks 98 far
_NETWORK_TIMEOUT = 5.0  # seconds: a machine without the network must not wait for it


class MetricUnavailable(FlashrayError):
    """A metric cannot be computed here; the message says why, and is reported with the empty column."""


def _vgg_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        if block:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return layers


def _alex_layers() -> list[nn.Module]:
    return [
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]


@dataclass(frozen=True)
class _Backbone:
    name: str
    layers: Callable[[], list[nn.Module]]  # under torchvision's indices, so that its checkpoints fit
    taps: tuple[int, ...]  # the rectified layers that are compared
    channels: tuple[int, ...]  # of each tap
    min_side: int  # below it the last tap has no pixel
    file: str
    checkpoint: str  # of torchvision, for torch.hub


_BACKBONES = {
    "vgg": _Backbone(
        name="VGG16",
        layers=_vgg_layers,
        taps=(3, 8, 15, 22, 29),
        channels=(64, 128, 256, 512, 512),
        min_side=16,
        file="lpips_vgg16.safetensors",
        checkpoint="vgg16-397923af.pth",
    ),
    "alex": _Backbone(
        name="AlexNet",
        layers=_alex_layers,
        taps=(1, 4, 7, 9, 11),
        channels=(64, 192, 384, 256, 256),
        min_side=31,
        file="lpips_alexnet.safetensors",
        checkpoint="alexnet-owt-7be5be79.pth",
    ),
}


class LPIPS(nn.Module):
    """The distance as a module: (x, ref), both [B, 3, H, W] in [-1, 1], to [B].

    Differentiable in both arguments; its own weights are frozen and it stays in evaluation mode. It is created with
    random weights, and `load_lpips` loads the published ones. ValueError for images too small for the backbone.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "vgg") -> None:
        super().__init__()
        backbone = _BACKBONES[net]
        self.net = net
        self.taps = backbone.taps
        self.min_side = backbone.min_side
        self.features = nn.Sequential(*backbone.layers())
        for depth, channels in enumerate(backbone.channels):
            self.register_module(f"lin{depth}", nn.Conv2d(channels, 1, kernel_size=1, bias=False))
        # From [-1, 1] to the mean and spread of ImageNet's pixels, in the rounding that v0.1 was trained with.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Has no effect: the distance stays fixed, also inside a model that trains."""
        return super().train(False)

    def forward(self, x_BCHW: Tensor, ref_BCHW: Tensor) -> Tensor:
        self._check(x_BCHW, ref_BCHW)
        return self._mean_distance(x_BCHW, self._unit_features(ref_BCHW))

    @torch.no_grad()
    def score(self, x_BCHW: Tensor, ref_BCHW: Tensor) -> Tensor:
        """[B] distances of images clamped to [-1, 1], as when they are written; in float32, without gradients."""
        return self.score_each([x_BCHW], ref_BCHW)[0]

    @torch.no_grad()
    def score_each(self, candidates: Sequence[Tensor], ref_BCHW: Tensor) -> list[Tensor]:
        """`score` of several batches against the same references, whose features are computed once.

        VGG takes large images in tiles, for memory: up to rounding the distances are those of the whole.
        """
        ref, *images = (image.float().clamp(-1, 1) for image in (ref_BCHW, *candidates))
        for x in images:
            self._check(x, ref)
        height, width = ref.shape[2:]
        if self.net != "vgg" or height * width <= _TILE**2:
            features = list(self._unit_features(ref))
            return [self._mean_distance(x, features) for x in images]
        totals = [ref.new_zeros(len(ref), len(self.taps), dtype=torch.float64) for _ in images]
        for top, left in product(range(0, height, _TILE), range(0, width, _TILE)):
            above, before = max(top - _HALO, 0), max(left - _HALO, 0)
            rows, columns = slice(above, top + _TILE + _HALO), slice(before, left + _TILE + _HALO)
            features = list(self._unit_features(ref[:, :, rows, columns]))
            for x, total in zip(images, totals, strict=True):
                for depth, distance_Bhw in enumerate(self._distances(x[:, :, rows, columns], features)):
                    first, start, side = (top - above) >> depth, (left - before) >> depth, _TILE >> depth
                    inside = distance_Bhw[:, first : first + side, start : start + side]
                    total[:, depth] += inside.double().sum(dim=(1, 2))
        counts = [(height >> depth) * (width >> depth) for depth in range(len(self.taps))]
        return [(total / total.new_tensor(counts)).sum(dim=1).float() for total in totals]

    def _check(self, x_BCHW: Tensor, ref_BCHW: Tensor) -> None:
        if x_BCHW.shape != ref_BCHW.shape or x_BCHW.ndim != 4 or min(x_BCHW.shape[2:]) < self.min_side:
            raise ValueError(
                f"LPIPS ({self.net}) compares [B, 3, H, W] images of one shape, at least {self.min_side} pixels a side,"
                f" not {tuple(x_BCHW.shape)} with {tuple(ref_BCHW.shape)}"
            )

    def _mean_distance(self, x_BCHW: Tensor, ref_features: Iterable[Tensor]) -> Tensor:
        distance = x_BCHW.new_zeros(len(x_BCHW), dtype=torch.float32)
        for distance_Bhw in self._distances(x_BCHW, ref_features):
            distance = distance + distance_Bhw.mean(dim=(1, 2))
        return distance

    def _distances(self, x_BCHW: Tensor, ref_features: Iterable[Tensor]) -> Iterator[Tensor]:
        """[B, h, w] of each tap."""
        pairs = zip(self._unit_features(x_BCHW), ref_features, strict=True)
        for depth, (x_BDhw, ref_BDhw) in enumerate(pairs):
            head_D = self.get_submodule(f"lin{depth}").get_parameter("weight").view(1, -1, 1, 1)
            yield ((x_BDhw - ref_BDhw).square() * head_D).sum(dim=1)

    def _unit_features(self, x_BCHW: Tensor) -> Iterator[Tensor]:
        h = (x_BCHW - self.shift) / self.scale
        for first, last in pairwise((-1, *self.taps)):
            h = self.features[first + 1 : last + 1](h)
            unit = h.float()  # also under autocast: the squares of small differences need the digits
            # vector_norm rather than the root of a sum: its gradient is 0, not NaN, where all features are 0.
            yield unit / (torch.linalg.vector_norm(unit, dim=1, keepdim=True) + 1e-10)


def load_lpips(net: Net = "vgg", weights: str | os.PathLike[str] | None = None) -> LPIPS:
    """The distance with its published weights, on the CPU.

    `weights` is a safetensors file or a folder with `lpips_vgg16.safetensors` and `lpips_alexnet.safetensors`, by
    default what the environment variable FLASHRAY_LPIPS_WEIGHTS names, else the public checkpoint in torch.hub's cache,
    which is downloaded where the network allows. MetricUnavailable, with the reason, where none of that works.
    """
    backbone = _BACKBONES[net]
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    tensors = _from_file(Path(named), backbone) if named else _from_hub(backbone)
    state = {key: value for key, value in tensors.items() if key.startswith(("features.", "lin"))}
    if not any(key.startswith("lin") for key in state):
        state |= _bundled_heads(net)
    lpips = LPIPS(net)
    expected = {key: value.shape for key, value in lpips.state_dict().items()}
    found = {key: value.shape for key, value in state.items()}
    if found != expected:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise MetricUnavailable(
            f"LPIPS ({net}): {named or 'the checkpoint'} does not hold the weights of {backbone.name}"
            f" ({len(wrong)} tensors differ, {wrong[0]} first); {REMEDY}"
        )
    lpips.load_state_dict(state)
    return lpips


def _from_file(path: Path, backbone: _Backbone) -> dict[str, Tensor]:
    file = path / backbone.file if path.is_dir() else path
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise MetricUnavailable(f"LPIPS ({backbone.name}): there is no file {file}; {REMEDY}") from error
    except (OSError, SafetensorError) as error:
        raise MetricUnavailable(
            f"LPIPS ({backbone.name}): {file} is not a readable safetensors file ({error}); {REMEDY}"
        ) from error


def _from_hub(backbone: _Backbone) -> dict[str, Tensor]:
    try:
        with _short_timeout():
            return torch.hub.load_state_dict_from_url(
                f"{_CHECKPOINTS}/{backbone.checkpoint}",
                map_location="cpu",
                progress=False,
                check_hash=True,
                weights_only=True,
            )
    except Exception as error:  # any failure of the network, the cache or the file: the rest of the job continues
        raise MetricUnavailable(
            f"LPIPS ({backbone.name}): the weights are neither in torch.hub's cache nor can they be downloaded"
            f" ({error}); {REMEDY}"
        ) from error


@contextmanager
def _short_timeout() -> Iterator[None]:
    """torch.hub sets no timeout of its own: a silent firewall would hold the job for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _bundled_heads(net: Net) -> dict[str, Tensor]:
    """The five linear heads that come inside the torchmetrics package."""
    source = resources.files("torchmetrics.functional.image") / "lpips_models" / f"{net}.pth"
    try:
        with resources.as_file(source) as path:
            heads = torch.load(path, map_location="cpu", weights_only=True)
        return {f"lin{depth}.weight": heads[f"lin{depth}.model.1.weight"] for depth in range(5)}
    except (OSError, KeyError) as error:
        raise MetricUnavailable(
            f"LPIPS ({net}): this torchmetrics package does not bring the heads ({error!r});"
            f" use a weights file that holds lin0.weight … lin4.weight"
        ) from error
