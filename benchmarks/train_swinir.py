"""Train SwinIR, a baseline, on clean photos: python -m benchmarks.train_swinir --photos … --val-photos … --output …"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import run_command
from benchmarks.swinir import SwinIR, load_swinir
from benchmarks.swinir_task import SwinIRConfig, SwinIRTask
from flashray.errors import ConfigError
from flashray.recipe import DegradationConfig
from flashray.training.launch import train
from flashray.training.loop import LoopConfig, save_half
from flashray.training.model_card import Interval, note_training, write_card
from flashray.training.photo_windows import list_photos, load_fitted, window_side
from flashray.training.train_config import TrainConfig, with_absolute_paths


@dataclass(frozen=True)
class TrainSwinIRConfig(TrainConfig):
    """What to train SwinIR on, and how; the photos are degraded on the fly, as for a severity encoder.

    Args:
        size: side of the square images that it will be used on, in pixels.
        init: a SwinIR of the same sizes whose weights training starts from.
        crop: side of the training views in pixels.
        charbonnier: ε of the loss √((x̂ - x)² + ε²), on [-1, 1]; 0 is L1.
    """

    size: int = 128
    init: str = ""
    crop: int = 64
    charbonnier: float = 1e-3
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    swinir: SwinIRConfig = field(default_factory=SwinIRConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def train_swinir(config: TrainSwinIRConfig) -> list[dict[str, Interval]]:
    """Train (or resume) and save the model; returns its figures on the validation photos, a row a severity level."""
    config = with_absolute_paths(config, "init")
    name = f"swinir-{config.degradation.name}"
    build = partial(build_swinir_task, config)
    task, state, _ = train(build, config.loop, config.photos, window_side(config.size), name, config.launch)
    output = Path(config.output)
    save_half(task.model, output)
    figures = task.figures()
    trained = note_training(output, name, state, config.loop)
    write_swinir_card(output, figures, len(task.val), trained)
    return figures


def write_swinir_card(
    folder: Path, figures: Sequence[Mapping[str, Interval]], val_photos: int, trained: Mapping[str, Any]
) -> None:
    """README.md and card.json of a SwinIR; `figures` has a row a severity level, evenly spaced from 0 to 1."""
    config = json.loads((folder / "config.json").read_text())
    levels = [n / (len(figures) - 1) for n in range(len(figures))]
    rows = [{"level": level, **row} for level, row in zip(levels, figures, strict=True)]
    columns = ("y_psnr", "psnr", "y_ssim", "ssim")
    lines = [
        f"# SwinIR: {config['degradation']}",
        "",
        f"Trained for {config['degradation']} {json.dumps(config['degradation_settings'])} with noise of std",
        f"{config['noise_std']} on the [0, 1] scale. {config['channels']} channels, Swin layers {config['depths']},",
        f"{config['heads']} heads, windows of {config['window']}, blocks of {config['pixel_block']}² pixels.",
        "Weights are half precision.",
        "",
        f"## On {val_photos} validation photos at each severity",
        "",
        "Mean and 95 % interval; the severity is 0 at the mildest end of the family's range, 1 at the hardest.",
        "",
        "| severity | PSNR of y | PSNR | SSIM of y | SSIM |",
        "|---|---|---|---|---|",
        *(
            f"| {level:.2f} | " + " | ".join("{:.4g} ({:.4g} … {:.4g})".format(*row[name]) for name in columns) + " |"
            for level, row in zip(levels, figures, strict=True)
        ),
    ]
    write_card(folder, {"validation_photos": val_photos, "figures": rows}, lines, trained)


def train_from_command(config: TrainSwinIRConfig) -> None:
    train_swinir(config)


def build_swinir_task(config: TrainSwinIRConfig) -> SwinIRTask:
    """The task, with a model that starts as the identity or as `init`."""
    torch.manual_seed(config.loop.seed)
    family = config.degradation
    known = {"degradation": family.name, "degradation_settings": family.settings, "noise_std": family.noise_std}
    model = SwinIR(**dataclasses.asdict(config.swinir), **known)
    if config.init:
        try:
            model.load_state_dict(load_swinir(config.init).state_dict())
        except RuntimeError as error:
            raise ConfigError(
                f"init {config.init}: a SwinIR of other sizes; give its as --swinir.…: {error}"
            ) from error
    val = load_fitted(list_photos(config.val_photos), config.size)
    return SwinIRTask(model, family.make(), family.noise_range, val, config.crop, config.charbonnier)


if __name__ == "__main__":
    from benchmarks import train_swinir as module  # by its own name, under which Ray's workers import it

    sys.exit(run_command(module.TrainSwinIRConfig, module.train_from_command, "benchmarks.train_swinir"))
