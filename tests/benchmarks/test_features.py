"""Names and ranges of the features that sets of images are compared by, and what is said where they are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.distances import features
from benchmarks.distances.features import INCEPTION_VARIABLE, Features, Inception, VGG16Features, load_features
from flashray.metrics import LPIPS, MetricUnavailable
from flashray.metrics.lpips import WEIGHTS_VARIABLE


@pytest.fixture
def vgg() -> Features:
    """Random weights, and a network that ends where LPIPS' does."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Features(VGG16Features(LPIPS("vgg")), "fd_vgg16", "kd_vgg16")


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch-fidelity were installed."""
    find_spec = features.importlib.util.find_spec
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: name == "torch_fidelity" or find_spec(name))


def images(count: int, seed: int, side: int = 24) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_last_rectified_layer_of_each_image_alone(vgg: Features):
    x = images(5, 0)
    found = vgg(x, batch=2)
    assert found.shape == (5, 512)
    assert found.dtype == torch.float64
    assert found.min() >= 0
    assert found.max() > 0
    for n in range(5):
        torch.testing.assert_close(vgg(x[n : n + 1])[0], found[n], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        vgg(torch.cat([3 * x[:1], -3 * x[:1]])), vgg(torch.cat([3 * x[:1], -3 * x[:1]]).clamp(-1, 1))
    )


def test_images_compare_under_names_that_say_the_network(vgg: Features):
    one, other = vgg(images(8, 1)), vgg(0.2 * images(8, 2))
    scores = vgg.compare(one, other)
    assert scores.keys() == {"fd_vgg16", "kd_vgg16"}
    same = vgg.compare(one, one)
    assert 0 <= same["fd_vgg16"] < 1e-6 * scores["fd_vgg16"]


def test_without_torch_fidelity_the_choice_is_vgg16_and_says_so_by_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "load_lpips", lambda net: LPIPS(net))
    monkeypatch.setenv(INCEPTION_VARIABLE, "weights.pth")
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    assert load_features().frechet == "fd_vgg16"
    with pytest.raises(MetricUnavailable, match=r"pip install torch-fidelity.*fd_vgg16"):
        load_features("inception")


@pytest.mark.usefixtures("fidelity")
def test_with_torch_fidelity_and_its_weights_the_choice_is_fid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[Any] = []

    class Network(nn.Module):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__()
            asked.append((arguments, options))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2048]

    module = ModuleType("torchmetrics.image.fid")
    module.NoTrainInceptionV3 = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    weights = tmp_path / "inception.pth"
    weights.touch()
    monkeypatch.setenv(INCEPTION_VARIABLE, str(weights))
    chosen = load_features()
    assert (chosen.frechet, chosen.kernel) == ("fid", "kid")
    assert chosen(images(3, 3, side=32)).shape == (3, 2048)
    assert asked == [(("inception-v3-compat", ["2048"], str(weights)), {"antialias": False})]


@pytest.mark.usefixtures("fidelity")
def test_inception_weights_that_are_missing_or_broken_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(INCEPTION_VARIABLE, str(tmp_path / "nothing.pth"))
    with pytest.raises(MetricUnavailable, match=r"nothing\.pth, and there is no such file"):
        load_features("inception")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    monkeypatch.setenv(INCEPTION_VARIABLE, str(tmp_path / "broken.pth"))
    with pytest.raises(MetricUnavailable, match=INCEPTION_VARIABLE):  # nor is torch-fidelity really there
        load_features("inception")


def test_inception_sees_the_bytes_that_would_be_written():
    seen: list[Tensor] = []
    network = nn.Module()
    network.forward = lambda x: seen.append(x) or x.flatten(1).float()  # type: ignore[method-assign, func-returns-value]
    x = torch.tensor([-7.0, -1.0, -0.999, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 6).expand(-1, 3, -1, -1)
    Features(Inception(network), "fid", "kid")(x)
    assert seen[0].dtype == torch.uint8
    assert seen[0][0, 0, 0].tolist() == [0, 0, 0, 128, 255, 255]


def test_missing_vgg_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(MetricUnavailable, match=r"lpips_vgg16\.safetensors"):
        load_features("vgg16")
