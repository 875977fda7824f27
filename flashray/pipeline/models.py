"""The driver's own copies of the models: for their hashes, the schedule, and the contact sheet."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flashray import storage
from flashray.checkpoints import warn_of_another_family, warn_of_another_noise
from flashray.degradations import make_degradation
from flashray.errors import ConfigError
from flashray.metrics import MetricUnavailable, load_lpips
from flashray.pipeline import run_record as rundir
from flashray.pipeline.run_config import ReconstructConfig
from flashray.prior import LatentPrior, load_prior
from flashray.severity import SeverityEncoder, load_severity_encoder
from flashray.tracking import default_uri
from flashray.tracking.model_registry import SCHEME, Registered, Unreachable, fetch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """Prior and severity encoder (None for full chains) of a configuration, on the CPU.

    Attributes:
        registered: where the encoder was fetched from a model registry.
    """

    config: ReconstructConfig
    prior: LatentPrior
    encoder: SeverityEncoder | None
    registered: Registered | None = None

    @property
    def encoder_place(self) -> str:
        """Where workers load the severity encoder from: of a registered one, the run directory has a copy (`share`)."""
        source = self.config.start.severity_encoder
        return _copy_of(self.config) if source.startswith(SCHEME) else source

    def share(self) -> None:
        """Put a registered encoder where every worker can read it; only the driver asks the registry."""
        place = _copy_of(self.config)
        if self.registered is None or storage.exists(storage.join(place, "config.json")):
            return
        paths = [path for path in self.registered.folder.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name == "config.json"):  # the sign that all is there comes last
            name = path.relative_to(self.registered.folder).as_posix()
            storage.put_bytes(storage.join(place, name), path.read_bytes())

    @property
    def chain(self) -> int:
        """NFE of the full chain."""
        return self.config.solver.steps

    @property
    def weights(self) -> int:
        """Bytes of the parameters of both, as an actor holds them."""
        return sum(
            parameter.nbytes
            for model in (self.prior.autoencoder, self.prior.denoiser, self.encoder)
            if model is not None
            for parameter in model.parameters()
        )

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

    A severity encoder of another degradation, or of much other noise, is a warning that names both.

    Raises:
        ConfigError: when one is missing, the chain is longer than the prior's, the degradation does not fit the prior's
            images, the encoder speaks of other latents, or its registry does not answer.
    """
    prior = load_prior(config.prior)
    config.solver.chain(prior.schedule)
    degradation = make_degradation(config.degradation.name, config.degradation.settings)
    degradation.check_size((prior.sample_size, prior.sample_size))
    if config.start.mode == "full":
        return Models(config, prior, None)
    source = config.start.severity_encoder
    registered = _fetch(config) if source.startswith(SCHEME) else None
    place = _copy_of(config) if source.startswith(SCHEME) else source
    encoder = load_severity_encoder(str(registered.folder) if registered else place)
    warn_of_another_family(f"severity encoder {source}", encoder.degradation, config.degradation.name)
    warn_of_another_noise(f"severity encoder {source}", encoder.noise_range, config.degradation.noise_range)
    pairs = [(getattr(encoder, f"latent_{name}"), getattr(prior, name)) for name in ("scale", "shift")]
    if not all(one.shape == other.shape and one.allclose(other) for one, other in pairs):
        raise ConfigError(
            f"severity encoder {source} was trained for another prior than {config.prior}: their latents are scaled "
            "differently; train one with jobs/train_severity.py, or name the prior that it belongs to"
        )
    return Models(config, prior, encoder, registered)


def _fetch(config: ReconstructConfig) -> Registered | None:
    """The registered encoder; None where the registry is away and an earlier start has left a copy."""
    try:
        return fetch(config.start.severity_encoder, config.mlflow.tracking_uri or default_uri(config.output))
    except Unreachable as error:
        copy = _copy_of(config)
        if not storage.exists(storage.join(copy, "config.json")):
            raise
        log.warning("%s. The run goes on with its copy of it, %s", error, copy)
        return None


def _copy_of(config: ReconstructConfig) -> str:
    return storage.join(config.output, "severity_encoder")
