from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from flashray.degradations import make_degradation
from flashray.degradations.jpeg import CHROMA, LUMA, Codec, dct_basis, quantisation
from flashray.images import open_image, to_pil
from tests.support.unit_scale import on_unit_scale


def codec(quality: float, subsampling: bool) -> Codec:
    family = make_degradation("jpeg", {"subsampling": subsampling})
    return family.bind({"quality": torch.tensor([quality])}, (1, 1))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
@pytest.mark.parametrize("quality", [5, 20, 50, 75, 95])
@pytest.mark.parametrize("subsampling", [True, False])
def test_it_is_pillows_jpeg_but_for_rounding(
    photo: torch.Tensor, quality: int, subsampling: bool, size: tuple[int, int]
):
    x = photo[:, 90 : 90 + size[0], 140 : 140 + size[1]]
    file = io.BytesIO()
    to_pil(x).save(file, format="JPEG", quality=quality, subsampling=2 if subsampling else 0)
    expected = open_image(file.getvalue()).pixels
    actual = codec(quality, subsampling).A(x[None])[0].clamp(-1, 1)
    error = (actual - expected).abs() * 127.5
    damage = (x - expected).abs().mean() * 127.5
    # what remains are roundings to whole numbers, and the few coefficients that they push to another multiple
    assert error.mean() < 1.25
    assert error.mean() < 0.6 * damage


@pytest.mark.parametrize("quality", [1, 10, 50, 75, 90, 100])
def test_tables_are_libjpegs(quality: int):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, format="JPEG", quality=quality)
    tables = Image.open(io.BytesIO(file.getvalue())).quantization  # type: ignore[attr-defined]
    for base, table in zip((LUMA, CHROMA), (tables[0], tables[1]), strict=True):
        assert quantisation(torch.tensor([float(quality)]), base)[0].flatten().tolist() == list(table)


def test_the_transform_is_orthonormal():
    basis = dct_basis()
    torch.testing.assert_close(basis @ basis.T, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(basis[0], torch.full((8,), 8**-0.5, dtype=torch.float64))


@pytest.mark.parametrize("subsampling", [True, False])
def test_the_gradient_is_that_of_a_codec_that_does_not_round(subsampling: bool):
    """Straight through: finite differences of the operator as its tables go to zero, at any quality."""
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.rand(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    coarse = codec(10, subsampling)
    fine = Codec(coarse.luma_B88.double() * 1e-9, coarse.chroma_B88.double() * 1e-9, subsampling)
    assert (on_unit_scale(coarse, x) - on_unit_scale(fine, x)).abs().max() > 0.05
    (gradient,) = torch.autograd.grad((on_unit_scale(coarse, x) * weight).sum(), x)
    step = 1e-4
    direction = torch.rand(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ahead, behind = ((on_unit_scale(fine, x + s * direction) * weight).sum() for s in (step, -step))
    torch.testing.assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-5, atol=0)


def test_a_flat_image_survives():
    x = torch.full((1, 3, 16, 24), 128 / 255)
    torch.testing.assert_close(on_unit_scale(codec(10, True), x), x, atol=1e-6, rtol=0)
