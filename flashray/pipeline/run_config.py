"""The configuration of a run: the recipe, and how and where it is carried out; it is checked before any work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from flashray import storage
from flashray.errors import ConfigError
from flashray.recipe import Recipe
from flashray.storage.working_folder import in_submitted_job, refuse_relative
from flashray.tracking.tracking_config import TrackingConfig

MOST_MEGAPIXELS = 178  # where Pillow itself refuses
METRICS = ("psnr", "ssim", "lpips")
Format = Literal["same", "png", "jpeg", "webp", "tiff"]
Shards = Literal["none", "tar", "parquet"]
IMAGES_PER_SHARD = 128


@dataclass(frozen=True)
class IoConfig:
    """What is read and written.

    Args:
        archive: folder or s3:// prefix of images or of shards (WebDataset tar, Parquet), or one file; an image's key is
            its path below it, or its name in its shard.
        output: a new folder or s3:// prefix outside the archive; a restored image is written to its key below it.
        measurement: observed (the archive holds degraded images) or simulated (it holds clean images; the run degrades
            each by its key and scores the result against it).
        manifest: CSV or Parquet with the columns key, the degradation's parameters, and optionally noise_std; for
            inpainting, a column mask may replace the parameters (the path of an image of the same size, white where
            pixels are known). Without one, columns of Parquet shards and JSON sidecars in tars are read the same way.
        references: folder or prefix of clean images with the archive's keys, to score observed measurements against.
        fit: whole restores each photo at its own size; for experiments on squares of the prior's size: resize (shorter
            side, then centre crop), crop, or error.
        shards: write the restored images into WebDataset tars or Parquet files, instead of a file each.
        images_per_shard: with shards; default 128, fewer where images are large (16 megapixels a shard).
        format: of the restored images; same keeps each file's format, any other appends its suffix to the name.
        quality: 1 to 100, of JPEG, WebP and AVIF; default 95, and lossless where a WebP was.
        samples: restorations of each image, each with noise of its own; those after the first, and a map of their
            spread, go to _flashray/samples.
        strict: an image whose format cannot hold what its file had (16 bits, alpha, a profile) fails instead of being
            noted.
        provenance: write recipe, σ̂, NFE and run id into each restored image's metadata; --no-provenance does not.
        max_megapixels: a larger image fails, before memory is taken for it.
        copy_others: copy the archive's files that are no images, too.
        skip_unreadable: leave out folders that cannot be read, instead of stopping before any work.
        metrics: metrics to compute where a reference exists, of psnr, ssim and lpips.
    """

    archive: str
    output: str
    measurement: Literal["observed", "simulated"] = "observed"
    manifest: str | None = None
    references: str | None = None
    fit: Literal["whole", "resize", "crop", "error"] = "whole"
    shards: Shards = "none"
    images_per_shard: int | None = None
    format: Format = "same"
    quality: int | None = None
    samples: int = 1
    strict: bool = False
    provenance: bool = True
    max_megapixels: float = 100.0
    copy_others: bool = False
    skip_unreadable: bool = False
    metrics: list[str] = field(default_factory=lambda: list(METRICS))

    @property
    def simulated(self) -> bool:
        return self.measurement == "simulated"


@dataclass(frozen=True)
class ResourcesConfig:
    """The machines and processes of a run.

    Args:
        device: cpu, cuda, or auto (cuda where the cluster has GPUs).
        precision: bf16 runs the networks under autocast; latents, norms and the operator stay in float32. auto is bf16
            where the device computes in it natively, else float32.
        solver_actors: default one a GPU; on CPUs one a core, or fewer with more threads where there are fewer images
            or memory is short.
        severity_actors: default two a GPU; on CPUs as many as solver actors.
        slots: windows that one solver actor has in flight; 0 is automatic (what a GPU's memory allows, 8 on CPUs).
        severity_batch: images of the prior's size in one call of the severity encoder; of larger ones as many pixels.
        unit_images: mean number of images of a unit, the grain of dispatch, retry and resume; the default depends on
            archive and pool.
        autoscale_seconds: request nodes for solver_actors from an autoscaling cluster, and wait this long for them.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    solver_actors: int | None = None
    severity_actors: int | None = None
    slots: int = 0
    severity_batch: int = 16
    unit_images: int | None = None
    autoscale_seconds: float = 0


@dataclass(frozen=True)
class PolicyConfig:
    """How much is done, and what happens to an earlier run in the output.

    Args:
        limit: at most this many images, the first in the order of their keys, or of the shards.
        budget_seconds: limit of the solve pass's time; all chains start milder than σ̂ requires, by one factor.
        budget_gpu_hours: the same, in hours of the pool's devices (on CPUs: of its actors).
        plan_only: print the quote (images, steps, share saved, time) and stop.
        retry_failed: try the images again that failed before.
        verify: at the start, compare the bytes of all restored images with their commits, not only their sizes;
            what is damaged is made again.
        overwrite: delete the run that the output holds, and start again; give the output's last component, so that no
            other run is deleted by mistake.
    """

    limit: int | None = None
    budget_seconds: float | None = None
    budget_gpu_hours: float | None = None
    plan_only: bool = False
    retry_failed: bool = False
    verify: bool = False
    overwrite: str | None = None

    @property
    def budget(self) -> dict[str, float]:
        """The budget by its name; empty without one, and more than one is refused."""
        named = {"budget_seconds": self.budget_seconds, "budget_gpu_hours": self.budget_gpu_hours}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class RunConfig:
    """Everything that one run depends on."""

    io: IoConfig
    recipe: Recipe = field(default_factory=Recipe)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def replaced(self, section: str, **values: Any) -> RunConfig:
        """This configuration with some values of one section changed."""
        return dataclasses.replace(self, **{section: dataclasses.replace(getattr(self, section), **values)})


def check(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, or a ConfigError that names what is wrong; starts nothing."""
    io, resources, policy = config.io, config.resources, config.policy
    for section, values in (("resources", resources), ("policy", policy), ("tracking", config.tracking)):
        for name, value in vars(values).items():
            _require(
                not isinstance(value, float) or math.isfinite(value), f"{section}.{name} is {value}; give a number"
            )
    for name, least in (("slots", 0), ("severity_batch", 1)):
        value = getattr(resources, name)
        _require(value >= least, f"{name} is {value}; give at least {least}")
    for section_values, name in (
        (policy, "limit"),
        (io, "images_per_shard"),
        (resources, "unit_images"),
        (resources, "solver_actors"),
        (resources, "severity_actors"),
    ):
        value = getattr(section_values, name)
        _require(value is None or value >= 1, f"{name} is {value}; give at least 1, or leave it out")
    _require(len(policy.budget) <= 1, f"{' and '.join(policy.budget)} are given; give one budget")
    for name, value in policy.budget.items():
        _require(value > 0, f"{name} is {value}; give a positive number")
        _require(
            config.recipe.start.mode == "flash",
            f"{name} scales σ̂, and start.mode is {config.recipe.start.mode}; take start.mode flash, or fewer "
            "solver.steps",
        )
    _require(
        io.images_per_shard is None or io.shards != "none",
        "images_per_shard is given without shards; add --shards tar or parquet",
    )
    _require(
        resources.unit_images is None or io.shards == "none",
        "unit_images is given with shards, where a unit is a shard; give --images-per-shard instead",
    )
    _require(io.quality is None or 1 <= io.quality <= 100, f"quality is {io.quality}; give a number from 1 to 100")
    _require(io.samples >= 1, f"samples is {io.samples}; give at least 1")
    _require(
        io.samples == 1 or io.shards == "none",
        "samples are files beside the images, and the output is in shards; leave out --samples or --shards",
    )
    _require(
        0 < io.max_megapixels <= MOST_MEGAPIXELS,
        f"max_megapixels is {io.max_megapixels:g}; give more than 0 and at most {MOST_MEGAPIXELS}",
    )
    _require(resources.autoscale_seconds >= 0, "autoscale_seconds is negative; give seconds, 0 or more")
    _require(
        not resources.autoscale_seconds or (resources.solver_actors is not None and resources.device != "auto"),
        "autoscale_seconds requests nodes for solver_actors on a device; give both, --device cpu or cuda",
    )
    _require(config.tracking.patience >= 0, f"tracking.patience is {config.tracking.patience}; give seconds, 0 or more")
    unknown = sorted(set(io.metrics) - set(METRICS))
    _require(not unknown, f"metrics: {', '.join(unknown)} not known; known: {', '.join(METRICS)}")
    _require(
        io.references is None or not io.simulated,
        "references are for observed measurements; simulated ones are scored against the archive itself",
    )
    _require(
        isinstance(config.recipe.degradation.settings.get("physics", ""), str | dict),
        "degradation.settings.physics is an object, and a run is recorded in words; give {name: {argument: value}}, or "
        "use flashray.load in Python",
    )
    recipe = config.recipe.check()
    # model folders are absolute too, unless the run's working folder travels to every node
    recipe = recipe if in_submitted_job() else recipe.with_absolute_folders()
    config = dataclasses.replace(config, recipe=recipe, io=_with_absolute_paths(io))
    name = config.io.output.rpartition("/")[2]
    _require(
        policy.overwrite in (None, name),
        f"overwrite is {policy.overwrite!r} and does not name the output {config.io.output}; "
        f"to delete the run in it and begin anew, give --overwrite {name}",
    )
    return config


def images_per_shard(io: IoConfig) -> int | None:
    """None where the output is not in shards."""
    return None if io.shards == "none" else io.images_per_shard or IMAGES_PER_SHARD


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as plain values, with passwords in addresses hidden."""
    values = dataclasses.asdict(config)
    uri = config.tracking.tracking_uri
    values["tracking"]["tracking_uri"] = uri and storage.redact(uri)
    return values


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{a: {b: 1}} as {a.b: 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _with_absolute_paths(io: IoConfig) -> IoConfig:
    """Absolute URIs; refuses archives and outputs inside each other, and relative paths where they would be lost."""
    uris = {name: getattr(io, name) for name in ("archive", "output", "manifest", "references")}
    refuse_relative(**uris)
    for name, uri in uris.items():
        if uri is None:
            continue
        uris[name] = storage.given(uri, name)
    archive, output = uris["archive"], uris["output"]
    _require(
        not storage.is_inside(output, archive),
        f"output {output} lies inside the archive {archive}: its images would be listed as new ones; "
        "choose an output outside",
    )
    for name in ("archive", "references"):
        uri = uris[name]
        _require(
            uri is None or not storage.is_inside(uri, output),
            f"{name} {uri} lies inside the output {output}: a run writes there; choose another output",
        )
    return dataclasses.replace(io, **uris)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
