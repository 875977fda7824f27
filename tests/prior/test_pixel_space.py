"""Pixel-space priors: pixels as latents, and what opens as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from flashray.active_image import Job
from flashray.degradations import make_degradation
from flashray.engine import advance, solve
from flashray.errors import ConfigError
from flashray.prior import LatentPrior, load_prior
from flashray.prior.pixel_space import SpaceToDepth
from flashray.seeding import STREAM_SOLVER, normal
from flashray.solvers import Problem, make_solver
from tests.support.models import SIDE, dc, save_pipeline, scheduler

BLUR = make_degradation("gaussian_blur")


def pixel_unet(channels: int = 3, side: int = SIDE) -> UNet2DModel:
    torch.manual_seed(5)
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_space_to_depth_moves_pixels_and_changes_none(factor: int, x: Tensor):
    pixels = SpaceToDepth(factor=factor)
    z = pixels.encode(x).latent
    assert z.shape == (3, 3 * factor**2, SIDE // factor, SIDE // factor)
    assert torch.equal(pixels.decode(z).sample, x)
    assert torch.equal(z.flatten().sort().values, x.flatten().sort().values)
    assert torch.equal(z[:, :, 1, 2].sort(dim=1).values, block_of(x, factor).sort(dim=1).values)  # a block a position
    assert list(pixels.parameters()) == []


def block_of(x: Tensor, factor: int) -> Tensor:
    return x[:, :, factor : 2 * factor, 2 * factor : 3 * factor].flatten(1)


@pytest.mark.parametrize("kind", [DDPMPipeline, DDIMPipeline])
def test_a_pixel_pipeline_that_diffusers_saved_opens(kind: type, x: Tensor, tmp_path: Path):
    noise = DDPMScheduler() if kind is DDPMPipeline else scheduler()
    kind(unet=pixel_unet(), scheduler=noise).save_pretrained(tmp_path)
    prior = load_prior(str(tmp_path))
    assert prior.sample_size == SIDE
    assert torch.equal(prior.encode(x), x)
    assert torch.equal(prior.decode(x), x)
    timestep = torch.tensor([0, 500, 999])
    torch.testing.assert_close(prior.epsilon(x, timestep), pixel_unet().eval()(x, timestep).sample)


def test_the_first_ddpm_pipelines_open_whose_components_have_no_folders(x: Tensor, tmp_path: Path):
    DDPMPipeline(unet=pixel_unet(), scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    for folder in ("unet", "scheduler"):
        for path in (tmp_path / folder).iterdir():
            path.rename(tmp_path / path.name)
        (tmp_path / folder).rmdir()
    prior = load_prior(str(tmp_path))
    assert torch.equal(prior.encode(x), x)
    assert prior.schedule.alphas_cumprod[-1] == pytest.approx(DDPMScheduler().alphas_cumprod[-1].item(), rel=1e-4)


def test_a_denoiser_that_does_not_fit_the_pixels_is_a_config_error(tmp_path: Path):
    DDPMPipeline(unet=pixel_unet(channels=1), scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="takes 1 channels, and the latents have 3"):
        load_prior(str(tmp_path))


def test_a_latent_pipeline_without_its_autoencoder_is_no_pixel_prior(tmp_path: Path):
    save_pipeline(tmp_path, dc())
    shutil.rmtree(tmp_path / "vqvae")
    with pytest.raises(ConfigError, match=r"none of vqvae/config\.json"):
        load_prior(str(tmp_path))
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(ConfigError, match=r"none of vqvae/config\.json"):
        load_prior(str(tmp_path))


def space_to_depth_prior(folder: Path, factor: int, scale: float) -> LatentPrior:
    """A pixel prior in the layout that training writes."""
    SpaceToDepth(factor=factor, scaling_factor=scale).save_config(folder / "vqvae")
    pixel_unet(3 * factor**2, SIDE // factor).save_pretrained(folder / "unet", safe_serialization=True)
    scheduler().save_pretrained(folder / "scheduler")
    index = {"_class_name": "LDMPipeline", "vqvae": ["flashray.prior.pixel_space", "SpaceToDepth"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return load_prior(str(folder))


@pytest.mark.parametrize(("factor", "scale"), [(1, 1.0), (2, 1.0), (4, 1.0), (2, 1.6)])
def test_latent_dps_with_pixels_as_latents_is_dps(factor: int, scale: float, x: Tensor, tmp_path: Path):
    """Chung et al. 2023, Algorithm 1, written out for the (scaled) pixels u, with the DDPM's own posterior."""
    prior = space_to_depth_prior(tmp_path, factor, scale).double()
    assert prior.sample_size == SIDE
    zeta, steps = 0.7, torch.tensor([3, 400, 990])
    operator = BLUR.bind(BLUR.parameters_at(torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)), (SIDE, SIDE))
    generator = torch.Generator().manual_seed(1)
    y, x_i = (torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64, generator=generator) for _ in "ab")
    seeds = torch.tensor([7, 8, 9])
    problem = Problem(y, operator, torch.full((3,), 0.05), prior.encode, prior.decode)
    solver = make_solver("latent_dps", {"dc_step": zeta})
    z_prev = advance(prior, solver, prior.schedule, problem, prior.encode(x_i), steps, seeds)

    def blocks(image: Tensor) -> Tensor:
        return torch.nn.functional.pixel_unshuffle(image, factor)

    def image_of(position: Tensor) -> Tensor:
        return torch.nn.functional.pixel_shuffle(position, factor)

    alpha, alpha_prev = (
        a[steps][:, None, None, None] for a in (prior.schedule.alphas_cumprod, prior.schedule.alphas_cumprod_prev)
    )
    beta = 1 - alpha / alpha_prev
    u = (scale * x_i).requires_grad_()
    score = -image_of(prior.denoiser(blocks(u), steps).sample) / (1 - alpha).sqrt()
    u0 = (u + (1 - alpha) * score) / alpha.sqrt()
    residual = (y - operator.A(u0 / scale)).flatten(1).norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(residual, u)
    noise = image_of(normal(seeds, steps, tuple(z_prev.shape[1:]), STREAM_SOLVER)).double()
    weight_u, weight_u0 = (1 - beta).sqrt() * (1 - alpha_prev) / (1 - alpha), alpha_prev.sqrt() * beta / (1 - alpha)
    posterior_mean = weight_u * u + weight_u0 * u0
    posterior_std = (beta * (1 - alpha_prev) / (1 - alpha)).sqrt()
    expected = (posterior_mean + posterior_std * noise - zeta * gradient) / scale
    torch.testing.assert_close(prior.decode(z_prev), expected.detach(), rtol=1e-7, atol=1e-7)


def test_the_engine_solves_in_pixel_space_and_the_data_pull(x: Tensor, tmp_path: Path):
    """Towards the measurement: with a step size the residual is well below what it is without."""
    prior = space_to_depth_prior(tmp_path, 4, 1.0)
    schedule = prior.schedule.respaced(40)
    parameters = {name: value[0] for name, value in BLUR.parameters_at(torch.tensor([0.2])).items()}
    smooth = torch.nn.functional.avg_pool2d(x[:1], 5, 1, 2)
    operator = BLUR.bind({name: value[None] for name, value in parameters.items()}, (SIDE, SIDE))
    y = operator.A(smooth)
    start = torch.randn(48, 8, 8, generator=torch.Generator().manual_seed(2))
    job = Job("a", 1, y[0], parameters, 0.05, start, 40)
    residual = {}
    for step in (0.0, 4.0):
        (solved,) = solve(prior, BLUR, make_solver("latent_dps", {"dc_step": step}), schedule, [job])
        assert solved.image is not None
        assert solved.image.shape == (3, SIDE, SIDE)
        residual[step] = (operator.A(solved.image[None]) - y).norm().item()
    assert residual[4.0] < 0.8 * residual[0.0]
