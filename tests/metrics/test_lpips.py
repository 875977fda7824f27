"""LPIPS against an independent implementation, and its behaviour with and without weights."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from skimage import data
from torch import Tensor

from flashray.images import from_uint8
from flashray.metrics import LPIPS, MetricUnavailable, load_lpips, lpips, score
from flashray.metrics.lpips import WEIGHTS_VARIABLE

NETS: tuple[lpips.Net, ...] = ("vgg", "alex")
FILES = {"vgg": "lpips_vgg16.safetensors", "alex": "lpips_alexnet.safetensors"}

# Computed once with the PyPI package lpips 0.1.4 (its own code and its own heads, net="vgg" and "alex", version 0.1) on
# torch 2.13.0, CPU, float32; its backbones, for which it asks torchvision, were written out by hand around the same
# ImageNet weights as here.
GOLDEN = {"vgg": [0.2260494, 0.7661589], "alex": [0.3551841, 0.5869764]}


def weights_folder() -> Path | None:
    for variable in (WEIGHTS_VARIABLE, "FLASHRAY_TEST_LPIPS"):
        folder = Path(os.environ.get(variable) or "/nonexistent")
        if all((folder / file).is_file() for file in FILES.values()):
            return folder
    return None


WEIGHTS = weights_folder()
needs_weights = pytest.mark.skipif(
    WEIGHTS is None, reason=f"neither {WEIGHTS_VARIABLE} nor FLASHRAY_TEST_LPIPS names a folder of LPIPS weights"
)


def picture(pixels_HWC: NDArray[np.uint8]) -> Tensor:
    return from_uint8(torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1)[None])


def pairs() -> list[tuple[Tensor, Tensor]]:
    """A face and the same face under a 5 x 5 box blur (in integers: the same everywhere); a cup and a cat."""
    source = data.astronaut()[30:162, 156:288].astype(np.int64)
    blurred = sum(source[i : i + 128, j : j + 128] for i in range(5) for j in range(5)) // 25
    face = source[2:130, 2:130]
    return [
        (picture(face.astype(np.uint8)), picture(blurred.astype(np.uint8))),
        (picture(data.coffee()[100:196, 200:312]), picture(data.chelsea()[60:156, 120:232])),
    ]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that names no weights and has nothing in torch.hub's cache; returns that cache's folder."""
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def random_alex() -> LPIPS:
    """Random weights are enough for what holds for any weights; the heads of v0.1 are not negative."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        distance = LPIPS("alex")
    for depth in range(5):
        distance.get_parameter(f"lin{depth}.weight").abs_()
    return distance


@needs_weights
@pytest.mark.parametrize("net", NETS)
def test_equals_an_independent_implementation(net: lpips.Net) -> None:
    distance = load_lpips(net, WEIGHTS)
    values = [distance.score(x, ref).item() for x, ref in pairs()]
    assert values == pytest.approx(GOLDEN[net], abs=2e-6)


@needs_weights
@pytest.mark.parametrize("net", NETS)
def test_heads_of_torchmetrics_are_those_of_the_file(net: lpips.Net, tmp_path: Path) -> None:
    assert WEIGHTS is not None
    whole = load_file(WEIGHTS / FILES[net])
    backbone = {key: value for key, value in whole.items() if key.startswith("features.")}
    assert len(backbone) < len(whole)
    save_file(backbone, tmp_path / "backbone.safetensors")
    loaded = load_lpips(net, tmp_path / "backbone.safetensors").state_dict()
    assert loaded.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)


@needs_weights
def test_grows_with_the_damage_and_is_part_of_the_score() -> None:
    distance = load_lpips("vgg", WEIGHTS)
    (face, _), _ = pairs()
    noise = torch.randn(face.shape, generator=torch.Generator().manual_seed(0))
    damaged = torch.cat([face + std * noise for std in (0.0, 0.05, 0.2)])
    scores = score(damaged, face.expand(3, -1, -1, -1), distance)
    assert scores.keys() == {"psnr", "ssim", "lpips"}
    assert scores["lpips"].shape == (3,)
    assert scores["lpips"][0] == pytest.approx(0, abs=1e-6)
    assert scores["lpips"].diff().min() > 0.01


def test_without_a_network_the_score_has_no_lpips() -> None:
    (face, blurred), _ = pairs()
    assert score(face, blurred).keys() == {"psnr", "ssim"}


def test_an_image_does_not_depend_on_its_batch(random_alex: LPIPS) -> None:
    generator = torch.Generator().manual_seed(1)
    x, ref = (torch.rand(4, 3, 40, 56, generator=generator) * 2 - 1 for _ in range(2))
    together = random_alex(x, ref)
    alone = torch.cat([random_alex(x[i : i + 1], ref[i : i + 1]) for i in range(4)])
    assert together.shape == (4,)
    assert together.min() > 0
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(together, random_alex(ref, x), rtol=1e-5, atol=1e-7)  # a distance is symmetric
    assert random_alex(x, x).abs().max() == 0


def test_gradient_flows_and_stays_finite_where_all_features_are_zero(random_alex: LPIPS) -> None:
    (face, blurred), _ = pairs()
    x = blurred.clone().requires_grad_()
    random_alex(x, face).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in random_alex.parameters())

    random_alex.get_parameter("features.0.bias").fill_(-100.0)  # every rectified feature of the first depth is 0
    x = blurred.clone().requires_grad_()
    random_alex(x, face).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_stays_in_evaluation_mode_inside_a_model_that_trains(random_alex: LPIPS) -> None:
    model = torch.nn.ModuleDict({"lpips": random_alex}).train()
    assert not any(module.training for module in model["lpips"].modules())


def test_too_small_images_are_refused_with_the_size(random_alex: LPIPS) -> None:
    with pytest.raises(ValueError, match="at least 31 pixels"):
        random_alex(torch.zeros(1, 3, 30, 64), torch.zeros(1, 3, 30, 64))
    for net in NETS:
        side = LPIPS(net).min_side
        assert torch.isfinite(LPIPS(net)(torch.zeros(1, 3, side, side), torch.ones(1, 3, side, side))).all()


def test_public_checkpoint_from_the_cache_of_torch_hub(no_weights: Path, random_alex: LPIPS) -> None:
    no_weights.mkdir(parents=True)
    backbone = {key: value for key, value in random_alex.state_dict().items() if key.startswith("features.")}
    public = backbone | {"classifier.6.bias": torch.zeros(1000)}  # the layers that LPIPS does without
    torch.save(public, no_weights / "alexnet-owt-7be5be79.pth")
    loaded = load_lpips("alex").state_dict()
    torch.testing.assert_close({key: loaded[key] for key in backbone}, backbone, rtol=0, atol=0)
    assert loaded["lin0.weight"].min() >= 0  # the trained heads, not random ones


@pytest.mark.usefixtures("no_weights")
def test_a_network_that_does_not_answer_is_given_up_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(lpips, "_NETWORK_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        monkeypatch.setattr(lpips, "_CHECKPOINTS", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(MetricUnavailable, match=WEIGHTS_VARIABLE) as caught:
            load_lpips("vgg")
    assert time.monotonic() - start < 5
    assert "timed out" in str(caught.value)
    assert socket.getdefaulttimeout() is None


def test_named_weights_that_are_missing_or_wrong_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, random_alex: LPIPS
) -> None:
    missing = tmp_path / "nothing.safetensors"
    with pytest.raises(MetricUnavailable, match=re.escape(str(missing))):
        load_lpips("vgg", missing)
    with pytest.raises(MetricUnavailable, match=r"no file .*lpips_vgg16\.safetensors"):
        load_lpips("vgg", tmp_path)

    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a weights file")
    with pytest.raises(MetricUnavailable, match="not a readable safetensors file"):
        load_lpips("vgg", broken)

    save_file(random_alex.state_dict(), tmp_path / "alex.safetensors")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "alex.safetensors"))
    assert load_lpips("alex").net == "alex"
    with pytest.raises(MetricUnavailable, match=r"alex\.safetensors does not hold the weights of VGG16"):
        load_lpips("vgg")


def test_large_images_in_tiles_are_scored_as_the_whole(photo: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights of the usual size: what a tile sees beyond its halo would show."""
    torch.manual_seed(0)
    distance = LPIPS("vgg")
    for depth in range(5):
        distance.get_submodule(f"lin{depth}").get_parameter("weight").abs_()
    x = photo[None, :, :283, :203]
    ref = (x + 0.2 * torch.randn(x.shape)).clamp(-1, 1)
    whole = distance(x, ref)
    monkeypatch.setattr(lpips, "_TILE", 128)
    torch.testing.assert_close(distance.score(x, ref), whole, rtol=1e-4, atol=0)
    monkeypatch.setattr(lpips, "_HALO", 0)
    assert (distance.score(x, ref) - whole).abs() > 1e-3 * whole
