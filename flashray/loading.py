"""`flashray.load`: a restorer with its models, from a recipe."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch

from flashray.build import check_choice
from flashray.device import chosen_device, native_precision
from flashray.errors import ConfigError
from flashray.images import Fit
from flashray.prior import LatentPrior, load_prior
from flashray.recipe import Recipe, load_recipe
from flashray.restorer import Restorer
from flashray.severity import SeverityEncoder, load_severity_encoder


def load(
    recipe: str | os.PathLike[str] | Recipe,
    device: str | torch.device = "auto",
    precision: Literal["auto", "float32", "bf16"] = "auto",
    measurement: Literal["observed", "simulated"] = "observed",
    fit: Fit = "whole",
    slots: int = 8,
    **changes: Any,
) -> Restorer:
    """A restorer with its models loaded.

    Args:
        recipe: a shipped recipe's name, the path of a recipe file, or a Recipe.
        device: cpu, cuda, or auto (cuda where there is one).
        precision: of the networks; auto is bf16 where the device computes in it natively, else float32.
        measurement: simulated degrades the images that are given, each by its key.
        fit: whole restores an image at its own size; resize, crop and error bring it to the prior's.
        slots: windows in one call of the denoiser, and photos in flight.
        changes: keys of the recipe with new values, such as `seed=1` or `solver={"steps": 50}`.

    Raises:
        ConfigError: when the recipe, a model or a setting is missing or wrong.
    """
    check_choice("precision", precision, ("auto", "float32", "bf16"))
    if not isinstance(slots, int) or slots < 1:
        raise ConfigError(f"slots is {slots!r}; give a whole number of windows, at least 1")
    if isinstance(recipe, Recipe):
        if changes:
            raise ConfigError("changes are for recipes given by name; change a Recipe with dataclasses.replace")
        chosen = recipe.check()
    else:
        chosen = load_recipe(recipe, changes)
    device = chosen_device(str(device))
    prior, encoder = load_models(chosen, device)
    prior.bf16 = (native_precision(device) if precision == "auto" else precision) == "bf16"
    return Restorer(chosen, prior, encoder, measurement, fit, slots)


def load_models(recipe: Recipe, device: str | torch.device = "cpu") -> tuple[LatentPrior, SeverityEncoder | None]:
    """(prior, severity encoder or None for a full chain) of a recipe, in float32.

    ConfigError when one is missing, or the encoder's name is one of a model registry.
    """
    prior = load_prior(recipe.prior, device)
    if not recipe.start.uses_encoder:
        return prior, None
    source = recipe.start.severity_encoder
    if source.startswith("models:/"):
        raise ConfigError(
            f"severity encoder {source}: only the job reads from a model registry; in Python give the encoder's "
            "folder, which flashray.tracking.model_registry.fetch returns"
        )
    return prior, load_severity_encoder(source, device)
