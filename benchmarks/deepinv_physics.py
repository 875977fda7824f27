"""Physics of deepinv restored by flashray, and deepinv's samplers beside flashray's on one pixel prior.

    python -m benchmarks.deepinv_physics FOLDER [--count 12]                        five physics, bundled models
    python -m benchmarks.deepinv_physics FOLDER --pixel-prior PRIOR [--count 8]     DPS, DDRM, DiffPIR and ours

Needs the extra `deepinv`, and LPIPS weights (FLASHRAY_LPIPS_WEIGHTS). Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepinv
import torch
from deepinv import physics as P
from deepinv.physics.functional import gaussian_blur
from deepinv.physics.generator import MotionBlurGenerator, TiledBlurGenerator
from torch import Tensor

from flashray.deepinv import FlashReconstructor, degradation
from flashray.images import as_image, fit_image
from flashray.metrics import LPIPS, load_lpips, score
from flashray.prior import LatentPrior, load_prior
from flashray.recipe import Recipe, SolverConfig
from flashray.severity import Start, estimate
from flashray.severity.loss import position_error
from flashray.training.photo_windows import list_photos, load_fitted

Sampler = Callable[[Tensor, Any], Tensor]  # (y, physics) → images in [0, 1]
ENCODERS = ("gaussian_blur", "random_inpainting", "photo")
RECIPE = "gaussian_blur_flash_proximal"  # all shipped recipes for known linear operators have its solver and fusion
STEPS = 50  # of every sampler
OTHERS = 2  # photos that their settings are chosen on


def physics_of(side: int) -> dict[str, tuple[str, Any]]:
    """Name → (the bundled severity encoder for the closest damage, physics with its noise)."""
    tiles = {"patch_size": (side // 2, side // 2), "stride": (side // 4, side // 4)}
    motion = TiledBlurGenerator(psf_generator=MotionBlurGenerator(psf_size=(11, 11)), **tiles)
    filters = motion.step(batch_size=1, img_size=(side, side), seed=0)["filters"]
    known = (torch.rand(1, side, side, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    return {
        "Blur, Gaussian of std 2, σ .05": (
            "gaussian_blur",
            P.Blur(gaussian_blur(sigma=(2, 2)), padding="reflect", noise_model=P.GaussianNoise(0.05)),
        ),
        "Downsampling, bicubic, by 4, σ .02": (
            "gaussian_blur",
            P.Downsampling(filter="bicubic", factor=4, noise_model=P.GaussianNoise(0.02)),
        ),
        "Inpainting, half of the pixels, σ .05": (
            "random_inpainting",
            P.Inpainting((3, side, side), mask=known, noise_model=P.GaussianNoise(0.05)),
        ),
        "TiledSpaceVaryingBlur, camera motion, σ .02": (
            "gaussian_blur",
            P.TiledSpaceVaryingBlur(filters=filters, noise_model=P.GaussianNoise(0.02), **tiles),
        ),
        "Denoising, PoissonGaussian, gain .02, σ .05": (
            "photo",
            P.Denoising(P.PoissonGaussianNoise(gain=0.02, sigma=0.05)),
        ),
    }


def cell(image: Tensor, x: Tensor, lpips: LPIPS) -> str:
    """Mean PSNR / LPIPS of images in [0, 1]."""
    found = score(2 * image - 1, 2 * x - 1, lpips, ("psnr", "lpips"))
    return f"{found['psnr'].mean():.2f} / {found['lpips'].mean():.3f}"


@torch.no_grad()
def physics_rows(x: Tensor, lpips: LPIPS) -> Iterator[str]:
    """A line for each physics with the closest encoder (bold), and with those of Gaussian blur and unknown damage."""
    side = x.shape[-1]
    models = {
        (name, strength): FlashReconstructor(
            RECIPE, start={"severity_encoder": f"bundled:{name}", "strength": strength}, precision="float32"
        )
        for name in ENCODERS
        for strength in (0.0, 1.0)
    }
    yield "| physics | encoder | y | D(ẑ) | 0 NFE | restored | NFE | σ̂ | σ̄ |\n|---|---|---|---|---|---|---:|---:|---:|"
    for number, (name, (closest, physics)) in enumerate(physics_of(side).items()):
        torch.manual_seed(number)
        y = physics(x)
        operator = degradation(physics, 0.0, (side, side)).make().bind({}, (side, side))
        shown = operator.picture(2 * y - 1) / 2 + 0.5
        for encoder in dict.fromkeys((closest, "gaussian_blur", "photo")):
            flash = models[encoder, 1.0]
            assert flash.encoder is not None
            severity = estimate(flash.encoder, flash.prior, operator.pseudo_image(2 * y - 1))
            error = position_error(severity.z_hat_BCHW, flash.prior.encode(2 * x - 1))
            decoded = flash.prior.decode(severity.z_hat_BCHW) / 2 + 0.5
            made = (shown, decoded, models[encoder, 0.0](y, physics), flash(y, physics))
            cells = [cell(image, x, lpips) for image in made]
            nfe = sum(flash.restored.nfe) / len(x)
            rms = [value.square().mean().sqrt() for value in (severity.sigma_Bhw, error.sqrt())]
            bold = f"**{encoder}**" if encoder == closest else encoder
            yield f"| {name} | {bold} | {' | '.join(cells)} | {nfe:.1f} | {rms[0]:.3f} | {rms[1]:.3f} |"


class PixelDenoiser(deepinv.models.Denoiser):
    """D(x, σ) on [0, 1] of a pixel prior: ẑ0 of the chain's state that has this noise."""

    def __init__(self, prior: LatentPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor, sigma: float | Tensor, **_: Any) -> Tensor:
        scale = 2 * float(self.prior.scale)  # pixels in [0, 1] to latents of unit variance
        std_B = (scale * self._handle_sigma(sigma, batch_size=len(x)).to(x)).clamp(min=1e-3)
        alpha_B = 1 / (1 + std_B.square())
        timestep_B = self.prior.schedule.snr_inverse(std_B.double() ** -2).round().long()
        z = alpha_B.sqrt()[:, None, None, None] * self.prior.encode(2 * x - 1)
        z0, _epsilon = self.prior.predict(z, timestep_B, alpha_B)
        return self.prior.decode(z0) / 2 + 0.5


def ours(prior: str, name: str, eta: float, **settings: float) -> FlashReconstructor:
    """A full chain of a flashray solver."""
    recipe = Recipe(start=Start("full"), solver=SolverConfig(name, STEPS, eta, settings=settings), prior=prior)
    return FlashReconstructor(recipe, precision="float32")


def samplers(prior: str) -> dict[str, dict[float, Sampler]]:
    """Name → value of its one setting → sampler; the settings are chosen on other photos."""
    denoiser = PixelDenoiser(load_prior(prior))
    sigmas = torch.linspace(1, 0, STEPS).tolist()
    dps, fidelity = deepinv.sampling.DPS, deepinv.optim.data_fidelity.L2()
    pir, ddrm = deepinv.sampling.DiffPIR, deepinv.sampling.DDRM
    return {
        "deepinv DPS, weight": {w: dps(denoiser, num_steps=STEPS, weight=w) for w in (64.0, 256.0, 1024.0)},
        "ours, latent_dps, dc_step": {w: ours(prior, "latent_dps", 1.0, dc_step=w) for w in (10.0, 30.0, 100.0)},
        "deepinv DDRM, η_b": {w: ddrm(denoiser, sigmas=sigmas, etab=w) for w in (0.5, 1.0)},
        "deepinv DiffPIR, λ": {
            w: pir(denoiser, data_fidelity=fidelity, max_iter=STEPS, lambda_=w) for w in (3.0, 7.0, 20.0)
        },
        "ours, proximal, rho": {w: ours(prior, "proximal", 0.3, rho=w) for w in (3.0, 10.0, 30.0)},
    }


def sampler_rows(x: Tensor, other: Tensor, prior: str, lpips: LPIPS) -> Iterator[str]:
    """A line for each sampler on two physics that have a singular value decomposition, as DDRM asks."""
    side, noise = x.shape[-1], P.GaussianNoise(0.05)
    known = (torch.rand(1, side, side, generator=torch.Generator().manual_seed(0)) > 0.5).float().expand(3, -1, -1)
    problems = {
        "BlurFFT, std 1.5": P.BlurFFT((3, side, side), gaussian_blur(sigma=(1.5, 1.5)), noise_model=noise),
        "Inpainting, half of the pixels": P.Inpainting((3, side, side), mask=known, noise_model=noise),
    }
    latent = FlashReconstructor(RECIPE, precision="float32")
    candidates = samplers(prior) | {"ours, flash(proximal), bundled latent prior": {0.0: latent}}
    yield "| physics | sampler | setting | PSNR / LPIPS | NFE |\n|---|---|---:|---|---:|"
    for number, (name, physics) in enumerate(problems.items()):
        torch.manual_seed(number)
        y, y_other = physics(x), physics(other)
        yield f"| {name} | y | | {cell(y, x, lpips)} | |"
        for sampler, by_setting in candidates.items():
            errors = {
                w: float((run(one, y_other, physics) - other).square().mean().nan_to_num(nan=9))
                for w, one in by_setting.items()
            }
            chosen = min(errors, key=errors.__getitem__)
            made = run(by_setting[chosen], y, physics)
            nfe = sum(latent.restored.nfe) / len(x) if by_setting[chosen] is latent else STEPS
            setting = f"{chosen:g}" if len(by_setting) > 1 else ""
            yield f"| {name} | {sampler} | {setting} | {cell(made, x, lpips)} | {nfe:.0f} |"


def run(sampler: Sampler, y: Tensor, physics: Any) -> Tensor:
    """Restored images in [0, 1]."""
    torch.manual_seed(0)
    return sampler(y, physics.clone()).detach().float().clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--pixel-prior")
    given = parser.parse_args()
    paths = list_photos(given.folder)
    step = len(paths) // given.count
    chosen, lpips = paths[::step][: given.count], load_lpips("vgg")
    if given.pixel_prior is None:
        crops = torch.stack([fit_image(as_image(path), 128, "crop") for path in chosen])
        lines = physics_rows(crops / 2 + 0.5, lpips)
    else:
        side = load_prior(given.pixel_prior).sample_size
        x, other = (load_fitted(some, side) / 2 + 0.5 for some in (chosen, paths[step // 2 :: step][:OTHERS]))
        lines = sampler_rows(x, other, given.pixel_prior, lpips)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
