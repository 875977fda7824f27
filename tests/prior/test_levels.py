"""Autoencoders with GroupNorm level by level in strips: what comes out is what comes out of the whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flashray.prior import load_prior
from flashray.prior.levels import in_levels
from flashray.strips import Strips
from tests.support.models import dc, kl, save_pipeline, vq
from tests.support.prior_layouts import lively

FOUR = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
AUTOENCODERS: dict[str, Callable[[], Any]] = {
    "VQ-f4": vq,
    "KL": kl,
    "KL, four levels": lambda: kl(block_out_channels=(8, 8, 16, 16), layers_per_block=2, **FOUR),
    "KL without attention": lambda: kl(mid_block_add_attention=False),
}


@pytest.fixture(autouse=True)
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is run level by level, in strips of 32 rows."""
    monkeypatch.setattr("flashray.prior.levels.WHOLE_PIXELS", 0)
    monkeypatch.setattr("flashray.prior.levels.LEVEL_ROWS", 32)


def image(height: int, width: int, count: int = 1, channels: int = 3) -> Tensor:
    """Strips of it have statistics of their own."""
    x = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[:, :, : height // 3] = 0.1 * x[:, :, : height // 3] + 0.7
    return x


def both(make: Callable[[], Any], dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """(An autoencoder as it is, the same level by level.)"""
    plain = lively(make()).requires_grad_(False)
    nn.Module.to(plain, dtype)
    return plain, in_levels(copy.deepcopy(plain))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("height", "width", "count"), [(160, 48, 2), (104, 8, 1), (16, 64, 1)])
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_levels_in_strips_are_the_whole(
    name: str, height: int, width: int, count: int, dtype: torch.dtype, bound: float
):
    plain, levelled = both(AUTOENCODERS[name], dtype)
    x = image(height, width, count).to(dtype)
    with torch.no_grad():
        z = plain.encoder(x)
        assert difference(levelled.encoder(x), z) < bound
        z = 3 * image(z.shape[2], z.shape[3], count, 4).to(dtype)
        assert difference(levelled.decoder(z), plain.decoder(z)) < bound


def test_strips_with_statistics_of_their_own_are_not(monkeypatch: pytest.MonkeyPatch):
    """The comparison has teeth: without pooling strips are far off."""
    plain, _ = both(kl)
    z = 3 * image(40, 12, 1, 4).double()
    with torch.no_grad():
        apart = torch.cat([plain.decoder(part) for part in z.split(8, dim=2)], dim=2)
        assert difference(apart, plain.decoder(z)) > 0.1


@pytest.mark.parametrize("name", ["VQ-f4", "KL"])
def test_a_prior_encodes_and_decodes_large_images_in_strips(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Through quantiser and scale; strips of 32 rows of 160 are taken, and no strip of an image that is small."""
    prior = load_prior(str(save_pipeline(tmp_path, AUTOENCODERS[name]())))
    seen: list[int] = []
    cut_up = Strips.cut_up

    def counted(self: Strips, height: int) -> Any:
        seen.append(height)
        return cut_up(self, height)

    monkeypatch.setattr(Strips, "cut_up", counted)
    monkeypatch.setattr("flashray.prior.levels.QUANTISED", 50)
    x = image(160, 48)
    with torch.no_grad():
        z = prior.encode(x)
        decoded = prior.decode(z)
        assert seen
        seen.clear()
        monkeypatch.setattr("flashray.prior.levels.WHOLE_PIXELS", 160 * 48)
        assert difference(z, prior.encode(x)) < 1e-5
        assert difference(decoded, prior.decode(z)) < 1e-5
        assert not seen


def test_where_a_gradient_is_wanted_the_whole_runs():
    plain, levelled = both(kl)
    z = image(40, 12, 1, 4).double().requires_grad_()
    (ours,) = torch.autograd.grad(levelled.decoder(z).square().sum(), z)
    (theirs,) = torch.autograd.grad(plain.decoder(z).square().sum(), z)
    assert torch.equal(ours, theirs)


def test_half_precision_is_as_near_as_its_rounding():
    plain, levelled = both(kl, torch.float32)
    z = 3 * image(40, 12, 1, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = levelled.decoder(z), plain.decoder(z)
    assert ours.dtype == theirs.dtype
    assert difference(ours.float(), theirs.float()) < 0.05


@pytest.mark.parametrize(
    "make",
    [
        lambda: kl(down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
        lambda: vq(up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D")),
        lambda: vq(norm_type="spatial", block_out_channels=(32, 32, 32)),
        dc,
    ],
)
def test_networks_of_another_shape_run_as_they_are(make: Callable[[], Any]):
    plain, levelled = both(make, torch.float32)
    x = image(160, 48)
    with torch.no_grad():
        z = plain.encode(x)
        z = z.latent if hasattr(z, "latent") else z.latents if hasattr(z, "latents") else z.latent_dist.mode()
        assert difference(levelled.decode(z).sample, plain.decode(z).sample) < 1e-5
        assert difference(levelled.encoder(x), plain.encoder(x)) < 1e-5
