"""Compare starts and settings on simulated measurements of a folder of photos, without Ray.

python jobs/benchmark.py --photos FOLDER --cells CELLS.json --output RESULTS.json

CELLS.json is a list of {"name", "start": {…}, "solver": {"name", "steps", "eta", "settings": {…}}}, with the same keys
as a recipe.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli

from flashray.degradations import make_degradation
from flashray.errors import FlashrayError
from flashray.experiment import measure_photos, run_cell, score_in_batches
from flashray.images import contact_sheet
from flashray.metrics import MetricUnavailable, load_lpips, mean_interval
from flashray.prior import load_prior
from flashray.severity import Start, load_severity_encoder
from flashray.solvers import make_solver
from flashray.training.launch import resolve_device
from flashray.training.photos import list_photos, load_fitted


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to compare.

    Attributes:
        photos: folder of clean photos; `offset` and `stride` choose among the sorted ones, at most `limit`.
        cells: JSON file with the cells.
        output: JSON file of results, written after every cell; the contact sheet stands beside it.
        precision: bf16 runs the prior's networks under autocast.
        compile: compile the denoiser and the decoder with torch.compile.
        degradation, settings, noise_std: what the photos go through.
    """

    photos: str
    cells: str
    output: str
    offset: int = 0
    stride: int = 1
    limit: int = 64
    prior: str = "bundled"
    severity_encoder: str = "bundled:gaussian_blur"
    degradation: str = "gaussian_blur"
    settings: dict[str, Any] = field(default_factory=dict)
    noise_std: float = 0.05
    slots: int = 8
    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    sheet: bool = True


def benchmark(config: BenchmarkConfig) -> None:
    device = resolve_device(config.device)
    prior = load_prior(config.prior, device)
    prior.bf16 = config.precision == "bf16"
    if config.compile:
        prior.denoiser.compile()
        prior.autoencoder.decoder.compile()
    encoder = load_severity_encoder(config.severity_encoder, device)
    degradation = make_degradation(config.degradation, config.settings)
    paths = list_photos(config.photos)[config.offset :: config.stride][: config.limit]
    x = load_fitted(paths, prior.sample_size)
    measured = measure_photos(x, [p.name for p in paths], prior, encoder, degradation, config.noise_std, config.seed)
    try:
        lpips = load_lpips("vgg").to(device)
    except MetricUnavailable as error:
        print(f"no LPIPS: {error}", flush=True)
        lpips = None
    results: list[dict[str, Any]] = []
    pictures = {"degraded": measured.y_NCHW.cpu()}

    def record(name: str, images: torch.Tensor, more: dict[str, Any]) -> None:
        scores = score_in_batches(images, x, lpips, torch.device(device))
        row: dict[str, Any] = {"name": name, "images": len(x), **more}
        row |= {metric: mean_interval(values.numpy()) for metric, values in scores.items()}
        row["rows"] = {"key": measured.keys, **{metric: values.tolist() for metric, values in scores.items()}}
        results.append(row)
        Path(config.output).write_text(json.dumps(results))
        figures = "  ".join(f"{metric} {row[metric][0]:.4f}" for metric in scores)
        rest = "  ".join(f"{key} {value:.4g}" for key, value in more.items() if isinstance(value, int | float))
        print(f"{name:40s} {figures}  {rest}", flush=True)

    record("degraded", measured.y_NCHW.cpu().clamp(-1, 1), {"nfe": 0})
    with torch.no_grad():
        record("latent estimate decoded", prior.decode(measured.z_hat_NCHW).cpu().clamp(-1, 1), {"nfe": 0})
        best = prior.decode(prior.encode(x.to(device))).cpu().clamp(-1, 1)
        record("autoencoder on the clean photo", best, {"nfe": 0})
    pictures["estimate"] = prior.decode(measured.z_hat_NCHW).cpu()
    sigma_hat, sigma_true = measured.sigma_hat_N.cpu(), measured.sigma_true_N.cpu()
    print(f"sigma_hat mean {sigma_hat.mean():.3f}, sigma_true mean {sigma_true.mean():.3f}", flush=True)
    for cell in json.loads(Path(config.cells).read_text()):
        started = time.perf_counter()
        settings = dict(cell["solver"])
        schedule = prior.schedule.respaced(settings.get("steps", len(prior.schedule)))
        solver = make_solver(settings["name"], settings.get("settings"))
        arguments = (measured, prior, Start(**cell.get("start", {})), solver, schedule, config.slots)
        images, outcome = run_cell(*arguments, eta=settings.get("eta", 1.0))
        outcome |= {"seconds_an_image": outcome.pop("seconds") / len(x), "wall": time.perf_counter() - started}
        nfe = outcome.pop("nfe").float()
        record(cell["name"], images, {"nfe": nfe.mean().item(), "nfe_max": nfe.max().item(), **outcome, "cell": cell})
        if config.sheet and cell.get("sheet", True):
            pictures[cell["name"]] = images
    if config.sheet:
        pictures["clean"] = x
        chosen = sigma_hat.argsort()[torch.linspace(0, len(x) - 1, min(8, len(x))).long()].tolist()
        rows = [[picture[n] for picture in pictures.values()] for n in chosen]
        titles = [f"σ̂ {sigma_hat[n]:.2f}" for n in chosen]
        contact_sheet(rows, list(pictures), titles).save(Path(config.output).with_suffix(".png"))


def main() -> int:
    try:
        benchmark(auto_cli(BenchmarkConfig, as_positional=False))
    except FlashrayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
