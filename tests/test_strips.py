from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.prior import LatentPrior, SpaceToDepth, load_prior
from flashray.strips import Strips, receptive_field, strips_of
from tests.support.models import dc, kl, vq


@pytest.fixture(scope="module")
def bundled() -> LatentPrior:
    return load_prior()


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers takes an RMSNorm's mean square in float32 whatever it is given: 1e-7 of rounding, and not of strips."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return x if self.bias is None else x + self.bias

    monkeypatch.setattr(RMSNorm, "forward", forward)


def image(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def difference(strips: Strips, network: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return (strips(network, x) - network(x)).abs().max().item()


def test_the_bundled_autoencoder_looks_36_and_52_pixels_far(bundled: LatentPrior):
    """Rounded up to whole latent positions."""
    encoder = strips_of(bundled.autoencoder.encoder, 3, Fraction(1, 4), rows=64)
    decoder = strips_of(bundled.autoencoder.decoder, 8, Fraction(4), rows=16)
    assert (encoder.halo, decoder.halo * 4) == (36, 52)


@pytest.mark.parametrize("rows", [8, 120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("exact_norms")
def test_strips_of_the_bundled_autoencoder_are_the_whole(bundled: LatentPrior, rows: int, dtype: torch.dtype):
    autoencoder, bound = bundled.autoencoder.to(dtype), {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    x = image(312, 16).to(dtype)
    try:
        assert difference(strips_of(autoencoder.encoder, 3, Fraction(1, 4), rows), autoencoder.encoder, x) < bound
        z = torch.randn(1, 8, 78, 4, generator=torch.Generator().manual_seed(1)).to(dtype) / bundled.scale.to(dtype)
        assert difference(strips_of(autoencoder.decoder, 8, Fraction(4), rows // 4), autoencoder.decoder, z) < bound
    finally:
        autoencoder.float()


def test_strips_of_the_bundled_autoencoder_as_it_is_agree_to_single_precision(bundled: LatentPrior):
    autoencoder = bundled.autoencoder
    assert difference(strips_of(autoencoder.encoder, 3, Fraction(1, 4), 64), autoencoder.encoder, image(312, 16)) < 1e-5


@pytest.mark.usefixtures("exact_norms")
def test_the_halo_is_needed(bundled: LatentPrior):
    """Two latent positions less and the decoder's strips show, though a double is needed to see so small a weight."""
    decoder = bundled.autoencoder.decoder.double()
    z = torch.randn(1, 8, 78, 4, generator=torch.Generator().manual_seed(1)).double() / bundled.scale.double()
    strips = strips_of(decoder, 8, Fraction(4), 8)
    try:
        assert difference(strips, decoder, z) < 1e-14
        for halo, least in ((strips.halo - 2, 1e-11), (strips.halo // 2, 1e-5), (1, 1e-2)):
            assert difference(Strips(strips.rows, halo, strips.cut, strips.zoom), decoder, z) > least
    finally:
        decoder.float()


@pytest.mark.parametrize(
    ("network", "channels", "zoom"),
    [
        (nn.Conv2d(3, 2, 5, padding=2), 3, Fraction(1)),
        (nn.Conv2d(3, 2, 3, padding=4, dilation=4), 3, Fraction(1)),
        (nn.Conv2d(3, 2, 4, stride=4), 3, Fraction(1, 4)),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1)),
            3,
            Fraction(1, 2),
        ),
        (nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 8, 3, padding=1)), 3, Fraction(1, 4)),
        (
            nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(4, 3, 3, padding=1)),
            4,
            Fraction(2),
        ),
        (nn.ConvTranspose2d(4, 3, 4, stride=4), 4, Fraction(4)),
        (nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), 4, Fraction(2)),
        (SpaceToDepth(factor=4).encoder, 3, Fraction(1, 4)),
        (dc().encoder, 3, Fraction(1, 4)),
        (dc().decoder, 4, Fraction(4)),
        (dc(downsample_block_type="conv", upsample_block_type="interpolate").encoder, 3, Fraction(1, 4)),
        (dc(downsample_block_type="conv", upsample_block_type="interpolate").decoder, 4, Fraction(4)),
    ],
)
@pytest.mark.parametrize("rows", [1, 12, 20])
@pytest.mark.usefixtures("exact_norms")
def test_strips_are_the_whole_and_the_field_is_a_bound(network: nn.Module, channels: int, zoom: Fraction, rows: int):
    network = network.double()
    x = image(72, 8, channels).double()
    strips = strips_of(network, channels, zoom, rows)
    assert difference(strips, network, x) < 1e-10
    # a change of the lower half is not seen further up than the receptive field
    changed = x.clone()
    changed[:, :, 40:] += 1
    with torch.no_grad():
        seen = (network(changed) - network(x)).abs().amax(dim=(0, 1, 3)) > 1e-14
    last_row = -((-int(seen.nonzero()[0]) - 1) // zoom) - 1  # of those that the first position that sees it covers
    reach = receptive_field(network, channels, zoom.denominator)
    assert 40 - last_row <= reach
    assert reach <= 72


@pytest.mark.parametrize("height", [24, 25, 47, 48, 49, 200])
def test_every_height_is_covered_once(height: int):
    strips = Strips(rows=24, halo=3, cut=1, zoom=Fraction(1))
    seen: list[int] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x.shape[2])
        return x

    x = image(height, 3)
    assert torch.equal(strips(network, x), x)
    assert max(seen) <= 24 + 2 * 3
    assert len(seen) == -(-height // 24)


def test_a_gradient_passes_through_strips_with_the_memory_of_one():
    network, calls = nn.Conv2d(3, 2, 3, padding=1).double(), []
    strips, x = strips_of(network, 3, Fraction(1), 5), image(17, 6).double().requires_grad_()

    def counting(strip: Tensor) -> Tensor:
        calls.append(strip.shape[2])
        return network(strip)

    (found,) = torch.autograd.grad(strips(counting, x).square().sum(), x)
    (expected,) = torch.autograd.grad(network(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert len(calls) == 2 * 4  # each strip again on the way back


def test_a_prior_encodes_and_decodes_in_strips(bundled: LatentPrior):
    autoencoder = bundled.autoencoder
    encode = strips_of(autoencoder.encoder, 3, Fraction(1, 4), rows=64)
    decode = strips_of(autoencoder.decoder, 8, Fraction(4), rows=16)
    x = image(216, 16)
    with torch.no_grad():
        z = bundled.encode(x)
        torch.testing.assert_close(encode(bundled.encode, x), z, rtol=0, atol=1e-5)
        torch.testing.assert_close(decode(bundled.decode, z), bundled.decode(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "culprit"),
    [
        (kl().encoder, "GroupNorm"),
        (vq().decoder, "GroupNorm"),
        (
            dc(
                encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
                encoder_qkv_multiscales=((), (), (5,)),
                attention_head_dim=8,
            ).encoder,
            "Attention",
        ),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3)), "InstanceNorm2d"),
        (nn.Sequential(nn.MultiheadAttention(4, 1)), "MultiheadAttention"),
    ],
)
def test_networks_that_look_at_the_whole_image_are_refused_by_name(network: nn.Module, culprit: str):
    with pytest.raises(ConfigError, match=rf"{culprit}.* looks at the whole image"):
        strips_of(network, 3, Fraction(1, 4), 16)


@pytest.mark.parametrize("layer", [nn.AdaptiveAvgPool2d(1), nn.LayerNorm(8), nn.Flatten(), nn.BatchNorm2d(3)])
def test_layers_that_are_not_known_are_refused_by_name(layer: nn.Module):
    with pytest.raises(ConfigError, match=rf"1 \({type(layer).__name__}\) is not known to be local"):
        strips_of(nn.Sequential(nn.Conv2d(3, 3, 1), layer), 3, Fraction(1), 16)


def test_padding_by_reflection_is_refused():
    with pytest.raises(ConfigError, match="pads by reflect"):
        strips_of(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), 3, Fraction(1), 16)
