"""The driver's own copies of the models: for their hashes, the schedule, and the contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flashray.config import ReconstructConfig
from flashray.degradations import make_degradation
from flashray.errors import ConfigError
from flashray.metrics import MetricUnavailable, load_lpips
from flashray.pipeline import rundir
from flashray.prior import LatentPrior, load_prior
from flashray.saved import warn_of_another_family
from flashray.severity import SeverityEncoder, load_severity_encoder


@dataclass(frozen=True)
class Models:
    """Prior and severity encoder (None for full chains) of a configuration, on the CPU."""

    config: ReconstructConfig
    prior: LatentPrior
    encoder: SeverityEncoder | None

    @property
    def chain(self) -> int:
        """NFE of the full chain."""
        return self.config.solver.steps

    def identity(self) -> dict[str, Any]:
        """What the bytes of a run with these models depend on (`rundir.identity`)."""
        weights = {"prior": self.prior.sha256, "severity_encoder": self.encoder.sha256 if self.encoder else None}
        operator = make_degradation(self.config.degradation.name, self.config.degradation.settings).weights_sha256()
        return rundir.identity(self.config, weights if operator is None else weights | {"degradation": operator})

    @cached_property
    def unavailable(self) -> dict[str, str]:
        """The metrics that are asked for and cannot be computed, and why."""
        scored = self.config.measurement == "simulated" or self.config.references is not None
        if scored and "lpips" in self.config.metrics:
            try:
                load_lpips("vgg")
            except MetricUnavailable as error:
                return {"lpips": str(error)}
        return {}

    @property
    def lpips(self) -> bool:
        """Whether LPIPS is asked for and can be computed."""
        return "lpips" in self.config.metrics and "lpips" not in self.unavailable


def load_models(config: ReconstructConfig) -> Models:
    """Load them, and check them against each other and against the recipe.

    A severity encoder of another degradation is a warning that names both.

    Raises:
        ConfigError: when one is missing, the chain is longer than the prior's, the degradation does not fit the prior's
            images, or the encoder speaks of other latents.
    """
    prior = load_prior(config.prior)
    config.solver.chain(prior.schedule)
    degradation = make_degradation(config.degradation.name, config.degradation.settings)
    degradation.check_size((prior.sample_size, prior.sample_size))
    if config.start.mode == "full":
        return Models(config, prior, None)
    source = config.start.severity_encoder
    encoder = load_severity_encoder(source)
    warn_of_another_family(f"severity encoder {source}", encoder.degradation, config.degradation.name)
    pairs = [(getattr(encoder, f"latent_{name}"), getattr(prior, name)) for name in ("scale", "shift")]
    if not all(one.shape == other.shape and one.allclose(other) for one, other in pairs):
        raise ConfigError(
            f"severity encoder {source} was trained for another prior than {config.prior}: their latents are scaled "
            "differently; train one with jobs/train_severity.py, or name the prior that it belongs to"
        )
    return Models(config, prior, encoder)
