"""The driver's copies of the models: for their hashes, the schedule, and the contact sheet."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flashray import storage
from flashray.checkpoints import warn_of_another_family, warn_of_another_noise
from flashray.errors import ConfigError
from flashray.metrics import MetricUnavailable, load_lpips
from flashray.pipeline import run_record
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.worker_settings import hashes
from flashray.prior import LatentPrior, check_prior, load_prior
from flashray.restorer import Restorer
from flashray.severity import SeverityEncoder, load_severity_encoder
from flashray.sources import HubId, pinned
from flashray.tracking import default_uri
from flashray.tracking.model_registry import SCHEME, Registered, Unreachable, fetch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """Prior and severity encoder (None for full chains) of a configuration, on the CPU."""

    config: RunConfig  # names hub ids with the commits that they stand for in this run
    prior: LatentPrior
    encoder: SeverityEncoder | None
    registered: Registered | None = None  # the encoder's version in a model registry, if it was fetched from one
    pinned: Mapping[str, str] = field(default_factory=dict)  # hub ids with commits, by the ids as they were given

    @property
    def encoder_source(self) -> str:
        """Where workers load the severity encoder from; for a registered one, a copy in the run folder (`share`)."""
        source = self.config.recipe.start.severity_encoder
        return _copy_of(self.config) if source.startswith(SCHEME) else source

    def share(self) -> None:
        """Copy a registered encoder to where every worker can read it; only the driver reads from the registry."""
        copy = _copy_of(self.config)
        if self.registered is None or storage.exists(storage.join(copy, "config.json")):
            return
        paths = [path for path in self.registered.folder.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name == "config.json"):  # the sign that all is there comes last
            name = path.relative_to(self.registered.folder).as_posix()
            storage.put_bytes(storage.join(copy, name), path.read_bytes())

    @property
    def weights(self) -> int:
        """Bytes of the parameters of both models in an actor."""
        return sum(
            parameter.nbytes
            for model in (self.prior.autoencoder, self.prior.denoiser, self.encoder)
            if model is not None
            for parameter in model.parameters()
        )

    def identity(self) -> dict[str, Any]:
        """Everything that the bytes of a run with these models depend on (`run_record.identity`)."""
        operator = self.config.recipe.degradation.make().weights_sha256()
        weights = hashes(self.prior, self.encoder)
        return run_record.identity(self.config, weights if operator is None else weights | {"degradation": operator})

    def warn_of_prior(self) -> None:
        """Log a warning where the prior's networks do not behave as its configs say; the bundled one's do.

        A warning, because a test picture is not the archive: what it cannot express, the photos may not need.
        """
        if self.config.recipe.prior == "bundled":
            return
        try:
            check_prior(self.prior)
        except ConfigError as error:
            log.warning("%s. The run goes on, and its images may be spoilt", error)

    @cached_property
    def unavailable(self) -> dict[str, str]:
        """The requested metrics that cannot be computed, and why."""
        scored = self.config.io.simulated or self.config.io.references is not None
        if scored and "lpips" in self.config.io.metrics:
            try:
                load_lpips("vgg")
            except MetricUnavailable as error:
                return {"lpips": str(error)}
        return {}

    @property
    def lpips(self) -> bool:
        """Whether LPIPS is requested and can be computed."""
        return "lpips" in self.config.io.metrics and "lpips" not in self.unavailable


def load_models(config: RunConfig) -> Models:
    """Load the models, and check them against each other and against the recipe.

    A hub id stands for the commit that run.json has for it, or else for the one that the hub gives now. A severity
    encoder of another degradation, or trained with very different noise, causes a warning. ConfigError when a model is
    missing, the chain is longer than the prior's, the degradation does not fit (as in `Restorer`), the encoder belongs
    to other latents, or its registry does not answer.
    """
    config, pins = _pinned(config)
    recipe = config.recipe
    prior = load_prior(recipe.prior)
    encoder, registered = None, None
    if recipe.start.uses_encoder:
        source = recipe.start.severity_encoder
        registered = _fetch(config) if source.startswith(SCHEME) else None
        folder = _copy_of(config) if source.startswith(SCHEME) else source
        encoder = load_severity_encoder(str(registered.folder) if registered else folder)
        warn_of_another_family(f"severity encoder {source}", encoder.degradation, recipe.degradation.name)
        warn_of_another_noise(f"severity encoder {source}", encoder.noise_range, recipe.degradation.noise_range)
    restorer = Restorer(recipe, prior, encoder, config.io.measurement, config.io.fit)  # raises where they do not fit
    fixed, side = restorer.degradation.fixed_size, prior.sample_size
    if fixed not in (None, (side, side)):
        raise ConfigError(
            f"degradation {recipe.degradation.name} is for images of {fixed[1]} x {fixed[0]} alone, and a job needs "
            f"{side} x {side}, the prior's size; use flashray.load in Python"
        )
    return Models(config, prior, encoder, registered, pins)


def _pinned(config: RunConfig) -> tuple[RunConfig, dict[str, str]]:
    """(The configuration with hub ids pinned to commits, these by the ids as they were given)."""
    recipe, start = config.recipe, config.recipe.start
    sources = {"prior": recipe.prior} | ({"severity encoder": start.severity_encoder} if start.uses_encoder else {})
    given = {what: str(model) for what, source in sources.items() if (model := HubId.of(source)) is not None}
    if not given:
        return config, {}
    # a run that is to be overwritten says nothing of the one that follows
    record = None if config.policy.overwrite else run_record.read_record(config.io.output)
    known = (record or {}).get("pinned", {})
    pins = {source: known.get(source) or pinned(source, what) for what, source in given.items()}
    named = {what: pins[source] for what, source in given.items()}
    start = dataclasses.replace(start, severity_encoder=named.get("severity encoder", start.severity_encoder))
    return config.replaced("recipe", prior=named.get("prior", recipe.prior), start=start), pins


def _fetch(config: RunConfig) -> Registered | None:
    """The registered encoder; None if the registry does not answer and an earlier start has left a copy."""
    try:
        uri = config.tracking.tracking_uri or default_uri(config.io.output)
        return fetch(config.recipe.start.severity_encoder, uri)
    except Unreachable as error:
        copy = _copy_of(config)
        if not storage.exists(storage.join(copy, "config.json")):
            raise
        log.warning("%s. The run goes on with its copy of it, %s", error, copy)
        return None


def _copy_of(config: RunConfig) -> str:
    return run_uri(config.io.output, "severity_encoder")
