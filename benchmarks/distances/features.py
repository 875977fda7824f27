"""Features of a network, which the distances between two sets of images compare."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.distances.frechet import frechet_distance
from benchmarks.distances.kernel import kernel_distance
from flashray.metrics.lpips import LPIPS, MetricUnavailable, load_lpips

Network = Literal["auto", "inception", "vgg16"]
INCEPTION_VARIABLE = "FLASHRAY_INCEPTION_WEIGHTS"


@dataclass(frozen=True)
class Features:
    """A network's features, and the names of the distances between them.

    Attributes:
        extract: [B, 3, H, W] images in [-1, 1] (values outside are clamped) to [B, D].
        frechet, kernel: the names of the Fréchet and of the kernel distance. Only Inception's are FID and KID: no other
            network's distance may be compared with a published one.
    """

    extract: Callable[[Tensor], Tensor]
    frechet: str
    kernel: str

    @torch.no_grad()
    def __call__(self, x_NCHW: Tensor, batch: int = 32) -> Tensor:
        """[N, D] on the CPU, in float64."""
        return torch.cat([self.extract(x_BCHW.float().clamp(-1, 1)).double().cpu() for x_BCHW in x_NCHW.split(batch)])

    def compare(self, x_ND: Tensor, y_MD: Tensor) -> dict[str, float]:
        """Both distances of two sets of features, by their names."""
        return {self.frechet: frechet_distance(x_ND, y_MD), self.kernel: kernel_distance(x_ND, y_MD)[0]}


def load_features(network: Network = "auto", device: str | torch.device = "cpu") -> Features:
    """The features to compare sets of images by.

    `inception` is Inception-v3 with the weights and the resizing of FID, by torchmetrics and torch-fidelity (which asks
    for torchvision): its distances are named `fid` and `kid`. Weights: the file that FLASHRAY_INCEPTION_WEIGHTS names,
    else torch-fidelity downloads them. `vgg16` is the ImageNet backbone that LPIPS uses, its last rectified layer
    (relu5_3, 512 channels) averaged over the image: `fd_vgg16` and `kd_vgg16`. `auto` is Inception where torch-fidelity
    is installed and the variable names its weights, and VGG16 otherwise.

    Raises:
        MetricUnavailable: if the network's package or weights are missing; the message names the remedy.
    """
    if network == "auto":
        ready = importlib.util.find_spec("torch_fidelity") is not None and bool(os.environ.get(INCEPTION_VARIABLE))
        network = "inception" if ready else "vgg16"
    if network == "inception":
        return Features(Inception(_load_inception()).to(device), "fid", "kid")
    return Features(VGG16Features(load_lpips("vgg")).to(device), "fd_vgg16", "kd_vgg16")


class VGG16Features(nn.Module):
    """relu5_3 of LPIPS' backbone, averaged over space: [B, 3, H, W] in [-1, 1], H, W ≥ 16, to [B, 512]."""

    def __init__(self, lpips: LPIPS) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.lpips.features((x_BCHW - self.lpips.shift) / self.lpips.scale).mean(dim=(2, 3))


class Inception(nn.Module):
    """FID's pool3 features, [B, 3, H, W] in [-1, 1] to [B, 2048]; the network takes bytes, as written images have."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.network(((x_BCHW + 1) * 127.5).round().to(torch.uint8))


def _load_inception() -> nn.Module:
    if importlib.util.find_spec("torch_fidelity") is None:
        raise MetricUnavailable(
            "FID and KID: the package torch-fidelity is not installed; `pip install torch-fidelity` (it brings"
            " torchvision), or use the distances on VGG16 features, fd_vgg16 and kd_vgg16"
        )
    weights = os.environ.get(INCEPTION_VARIABLE)
    if weights and not Path(weights).is_file():
        raise MetricUnavailable(
            f"FID and KID: {INCEPTION_VARIABLE} names {weights}, and there is no such file; name torch-fidelity's"
            " weights-inception-2015-12-05-6726825d.pth"
        )
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        # without anti-aliasing it resizes as the network of published figures does
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights or None, antialias=False)
    except Exception as error:  # any failure of the package, the download or the file
        raise MetricUnavailable(
            f"FID and KID: Inception could not be loaded ({error}); name its weights with {INCEPTION_VARIABLE}"
        ) from error
    return network.requires_grad_(False)
