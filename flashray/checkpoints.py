"""Models of this project's own, saved as diffusers saves its models: config.json and safetensors in a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from flashray.errors import ConfigError
from flashray.prior import bundled, hash_weights
from flashray.prior.weights import load_model, read_json
from flashray.sources import local_folder

log = logging.getLogger(__name__)

M = TypeVar("M")


def load_saved(cls: type[M], source: str, device: str | torch.device, *, kind: str, room: str, job: str) -> M:
    """Load a model for inference: frozen, in single precision, with its `sha256`.

    `source` is `bundled:<name>` for one in the folder `room`, or a folder, hub id or URI with what `save_pretrained`
    wrote. Errors name the model's `kind` and `job`, the command that trains one. ConfigError if there is none, with the
    bundled ones listed; if the folder holds something else or no weights; if tensors are missing, unexpected, of
    another shape, NaN or infinite.
    """
    if source.startswith("bundled:"):
        folder = bundled(room, source.removeprefix("bundled:"))
    else:
        folder = local_folder(source, kind)
    model = _load(cls, source, folder, kind=kind, room=room, job=job)
    loaded: M = model.to(device).eval().requires_grad_(False)
    return loaded


def _load(cls: type[M], source: str, folder: Path, *, kind: str, room: str, job: str) -> Any:
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(f"bundled:{path.parent.name}" for path in bundled(room).glob("*/config.json")))
        raise ConfigError(f"{kind} {source}: not found; bundled are {known or 'none'}, or name a saved folder")
    found = read_json(folder / "config.json").get("_class_name")
    if found != cls.__name__:
        raise ConfigError(f"{kind} {source}: the folder holds a {found}; train one with {job}")
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ConfigError(f"{kind} {source}: {SAFETENSORS_WEIGHTS_NAME} is missing; save_pretrained writes it")
    model = load_model(cls, folder)
    model.sha256 = hash_weights(folder)
    return model


FAR = 1.5  # times the noise of a model's training; at twice that noise σ̂ falls although the error rises


def warn_of_another_noise(what: str, trained: tuple[float, float], noise: tuple[float, float]) -> None:
    """Log a warning where the measurements' noise differs by more than a factor FAR from that of a model's training.

    `trained` and `noise` are (low, high) of noise_std on the [0, 1] scale.
    """
    if noise[1] > FAR * trained[1] or FAR * noise[0] < trained[0]:
        given, known = (f"{low:g}" if low == high else f"[{low:g}, {high:g}]" for low, high in (noise, trained))
        log.warning(
            "%s was trained with noise_std %s, and the measurements have %s: its estimates may be wrong there, and σ̂ "
            "too small; train one with flashray train severity --degradation.noise-std '[LOW, HIGH]'",
            what,
            known,
            given,
        )


def warn_of_another_family(what: str, trained_on: str, degradation: str) -> None:
    """Log a warning where a model was trained on another degradation than the recipe's."""
    if trained_on != degradation:
        log.warning("%s was trained on %s, and the degradation is %s", what, trained_on, degradation)
