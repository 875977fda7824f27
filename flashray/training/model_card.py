"""Model cards: figures measured on validation photos, written next to the weights."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashray.images import contact_sheet
from flashray.metrics import MetricUnavailable, load_lpips, mean_interval, score
from flashray.prior import LatentPrior
from flashray.prior.pixel_space import SpaceToDepth
from flashray.sampling import sample
from flashray.training.denoiser_task import DenoiserTask
from flashray.training.latents import latent_figures
from flashray.training.loop import STATE_FILE, LoopConfig

Interval = tuple[float, float, float]  # mean, and the ends of its 95 % interval

SAMPLES = 64
SAMPLE_STEPS = 100


@torch.no_grad()
def autoencoder_figures(prior: LatentPrior, x_NCHW: Tensor) -> dict[str, Interval]:
    """PSNR, SSIM and LPIPS (VGG, where its weights are found) of D(E(x)): mean and its 95 % interval."""
    try:
        lpips = load_lpips("vgg").to(prior.device)
    except MetricUnavailable as error:
        print(f"the card will lack LPIPS: {error}", flush=True)
        lpips = None
    rows = []
    for x in x_NCHW.split(16):
        x = x.to(prior.device)
        rows.append(score(prior.decode(prior.encode(x)), x, lpips))
    return {name: mean_interval(torch.cat([row[name] for row in rows]).cpu().numpy()) for name in rows[0]}


def sample_sheet(prior: LatentPrior, latent_shape: tuple[int, ...], path: Path) -> None:
    """A PNG of SAMPLES samples from noise."""
    schedule = prior.schedule.respaced(SAMPLE_STEPS)
    latents = sample(prior, latent_shape, schedule, torch.arange(SAMPLES, device=prior.device))
    images = torch.cat([prior.decode(z).clamp(-1, 1).cpu() for z in latents.split(16)])
    sheet = contact_sheet([list(row) for row in images.split(8)], [""] * 8)
    sheet.quantize(256).save(path, optimize=True)  # it comes inside the package


def write_prior_card(
    folder: Path, prior: LatentPrior, photos: str, val_NCHW: Tensor, trained: Mapping[str, Any]
) -> None:
    """README.md, card.json and samples.png of a prior that was trained on `photos`, which are named in words.

    The validation photos are in [-1, 1]; `trained` is what `note_training` noted of each stage.
    """
    pixels = isinstance(prior.autoencoder, SpaceToDepth)
    quality = {} if pixels else autoencoder_figures(prior, val_NCHW)  # pixels come back as they are
    losses = DenoiserTask(prior, val_NCHW).validate()
    latents = latent_figures(prior, val_NCHW)
    latent_shape = tuple(prior.encode(val_NCHW[:1].to(prior.device)).shape[1:])
    sample_sheet(prior, latent_shape, folder / "samples.png")
    figures: dict[str, Any] = {"photos": photos, "validation_photos": len(val_NCHW), "denoiser": losses}
    figures |= {"autoencoder": quality} if quality else {}
    figures |= {"latents": latents}
    side = prior.sample_size
    lines = [
        f"# {'Pixel' if pixels else 'Latent'} diffusion prior, {side}×{side}",
        "",
        *_latents_in_words(prior, photos, latent_shape),
        "",
        f"## On {len(val_NCHW)} validation photos",
        "",
        *_table(quality),
        "Denoiser, mean ‖ε - ε̂‖²/d at a timestep (1 is what predicting zero would cost):",
        "",
        "| t | " + " | ".join(str(int(name[6:])) for name in losses if name != "loss") + " | mean |",
        "|---" * (len(losses) + 1) + "|",
        "| loss | "
        + " | ".join(f"{v:.3f}" for name, v in losses.items() if name != "loss")
        + f" | {losses['loss']:.3f} |",
        "",
        *_latents_learnable(latents),
        "",
        f"`samples.png`: {SAMPLES} samples from noise, {SAMPLE_STEPS} ancestral steps, seeds 0 … {SAMPLES - 1}.",
    ]
    write_card(folder, figures, lines, trained)


def _latents_in_words(prior: LatentPrior, photos: str, latent_shape: tuple[int, ...]) -> list[str]:
    """A description of the latents, as Markdown."""
    shape = "×".join(map(str, latent_shape))
    if isinstance(prior.autoencoder, SpaceToDepth):
        block = prior.autoencoder.config["factor"]
        return [
            f"Trained on {photos}. Latents are the pixels in [-1, 1] times {prior.scale.item():.4g}, which brings them",
            f"to unit mean square, in blocks of {block}×{block}: {shape}. Weights are half precision.",
        ]
    return [
        f"Trained on {photos}. Latents are {shape}, each channel of zero mean and unit variance after the statistics",
        "in `latent_statistics.json`; of unit mean square after the one scaling factor in `vqvae/config.json` that",
        "diffusers knows of. The folder is a diffusers pipeline (`LDMPipeline`); weights are half precision.",
    ]


def _latents_learnable(figures: Mapping[str, Any]) -> list[str]:
    """The figures of `latent_figures`, as Markdown."""
    shares = ", ".join(f"{share:.3f} at σ = {sigma}" for sigma, share in figures["wiener_share"].items())
    return [
        f"Latents: 1 - correlation of horizontal neighbours, mean over channels: {figures['roughness']:.3f} (0 smooth,",
        f"1 white). The denoiser's error over that of an elementwise Wiener filter: {shares}.",
    ]


def _table(quality: Mapping[str, Interval]) -> list[str]:
    """The autoencoder's figures and their intervals, as Markdown."""
    if not quality:
        return []
    rows = (f"| {name.upper()} | {mean:.4g} | {low:.4g} … {high:.4g} |" for name, (mean, low, high) in quality.items())
    return ["| autoencoder | mean | 95 % interval |", "|---|---|---|", *rows, ""]


def write_severity_card(
    folder: Path, figures: Mapping[str, float], val_photos: int, trained: Mapping[str, Any]
) -> None:
    """README.md and card.json of a severity encoder."""
    config = json.loads((folder / "config.json").read_text())
    rows = {
        "latent_mse": "mean (ẑ - z₀)²",
        "sigma_error": "mean abs(σ̂ - σ̄)",
        "spearman_sigma": "Spearman(σ̂, σ̄): predicted and true error",
        "spearman_map": "the same over the positions of a photo, mean over photos",
        "ordering": "ordering accuracy of σ̂ over 10 levels of the same photo",
        "ordering_true": "… and of σ̄, the true error",
        "spearman_level": "Spearman of σ̂ with the severity level across photos",
        "spearman_level_true": "… and of σ̄",
        "sigma_hat_mean": "mean σ̂",
        "sigma_true_mean": "mean σ̄",
    }
    settings = json.dumps(config["degradation_settings"])
    lines = [
        f"# Severity encoder: {config['degradation']}",
        "",
        f"Trained for {config['degradation']} {settings} with noise of std {config['noise_std']} on the [0, 1] scale.",
        "",
        f"## On {val_photos} validation photos at 10 levels each",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {text} | {figures[name]:.4f} |" for name, text in rows.items()),
    ]
    write_card(folder, {"validation_photos": val_photos, "figures": dict(figures)}, lines, trained)


def write_card(folder: Path, figures: Mapping[str, Any], lines: list[str], trained: Mapping[str, Any]) -> None:
    """card.json of a model's figures, and README.md of these lines; both end with what `note_training` noted."""
    card = {**figures, "trained": dict(trained), "machine": machine()}
    (folder / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    lines = [*lines, "", "## Training", "", f"Machine: {machine()}."]
    for stage, facts in trained.items():
        time = timedelta(seconds=round(facts["seconds"]))
        done = f"{stage}: seed {facts['seed']}, {facts['samples']:,} samples in {time} of training time."
        lines += ["", done, "", "```", facts["command"], "```"]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def note_training(folder: Path, stage: str, state: Path, loop: LoopConfig) -> dict[str, Any]:
    """Add how a stage was trained to `training.json` in the model's folder; returns the file's new content."""
    path = folder / "training.json"
    notes: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    saved = torch.load(state / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
    notes[stage] = {
        "command": command_line(),
        "seed": loop.seed,
        "seconds": round(saved["seconds"]),
        "samples": saved.get("samples", saved["step"] * loop.batch_size),
    }
    path.write_text(json.dumps(notes, indent=2) + "\n")
    return notes


def command_line() -> str:
    """This process's command, with folders cut to their last two parts: a card must not name a machine's disks."""
    program = Path(sys.argv[0]).name
    begun = f"python jobs/{program}" if program.startswith("train_") else "flashray"
    return " ".join([begun, *(shlex.quote(re.sub(r"^(--[^=]+=)?(/.*)", _cut, word)) for word in sys.argv[1:])])


def _cut(word: re.Match[str]) -> str:
    return (word[1] or "") + "/".join(Path(word[2]).parts[-2:])


def machine() -> str:
    """A description of the machine."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} CPU cores ({model}), no GPU"
