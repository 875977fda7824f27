"""The run's identity: run.json, the archive's listing, and the check that a start belongs to the run."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import posixpath
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

import pyarrow as pa

from flashray import storage
from flashray.errors import ConfigError
from flashray.option_parser import typed
from flashray.pipeline.archive import LISTING, OF_MANIFEST, differences, is_hidden, listing_hash
from flashray.pipeline.run_config import Format, RunConfig, Shards, flatten, to_dict
from flashray.pipeline.run_folder import RUN_FOLDER, page_uri, refuse_old_layout, run_files, run_uri
from flashray.pipeline.run_tables import own_names, parquet, read_table
from flashray.shown import first_of

# Settings that a restored image's bytes do not depend on: which images fail, are left out or are taken, the output, the
# number of actors, the weights' folders (their hashes count instead), and the manifest's path (the listing holds its
# values for each image). A budget has its own entry in run.json, because it may change until something is committed.
_FREE = {
    *("io.strict", "io.max_megapixels", "io.copy_others", "io.skip_unreadable"),
    *("io.output", "io.manifest", "policy.plan_only", "policy.retry_failed", "policy.overwrite", "policy.verify"),
    *("policy.budget_seconds", "policy.budget_gpu_hours", "policy.limit"),
    *("resources.device", "resources.solver_actors", "resources.severity_actors", "resources.autoscale_seconds"),
    *("recipe.prior", "recipe.start.severity_encoder"),
}
_PACKAGES = ("flashray", "torch", "ray", "diffusers", "pyarrow", "pillow", "mlflow")
_PARTS = (
    *("summary.json", "problems.csv", "contact_sheet.png", "commits", "attempts", "severity", "plan", "cost.json"),
    *("tracking", "archive.parquet", "index.parquet", "others.parquet", "samples"),
)
_DELETERS = 16
log = logging.getLogger(__name__)


def identity(config: RunConfig, weights: Mapping[str, str | None]) -> dict[str, Any]:
    """Everything that a run's bytes depend on, except the listing, as one flat dict."""
    flat = flatten(to_dict(config))
    flat = {n: value for n, value in flat.items() if n not in _FREE and not n.startswith("tracking.")}
    if config.io.shards == "none":  # as runs were before there were shards
        flat = {name: value for name, value in flat.items() if name not in ("io.shards", "io.images_per_shard")}
    if config.io.samples == 1:  # as in runs from before there were samples
        del flat["io.samples"]
    if config.recipe.fusion.name != "learned":  # as in runs from before there was a residual
        del flat["recipe.fusion.grain"]
    if not config.recipe.start.uses_encoder:  # a full chain does not depend on the rest of the start
        unused = {name for name in flat if name.startswith("recipe.start.") and name != "recipe.start.mode"}
        flat = {name: value for name, value in flat.items() if name not in unused}
    flat |= {f"weights.{name}": digest for name, digest in weights.items()}
    return json.loads(json.dumps(flat))


def examine(
    config: RunConfig, found: Mapping[str, Any], listing: pa.Table, failed: Collection[str] = ()
) -> dict[str, Any] | None:
    """run.json of the run that the output holds, or None where it holds none; changes nothing.

    ConfigError when the output holds a run of another configuration, archive or layout (the difference is named), or
    files that no run wrote. An archive may have grown. `found` is `identity` of this start. Keys in `failed` failed
    before; with a retry these may have changed in the archive, or be gone.
    """
    output = config.io.output
    old = read_record(output)
    files = [] if old else [entry.key for entry in storage.list_files(output)]
    old = old or read_record(output)  # another driver may have begun before the listing
    if old is None:
        refuse_old_layout(output)
        if any(key.startswith((f"{RUN_FOLDER}/plan/", f"{RUN_FOLDER}/commits/")) for key in files):
            raise ConfigError(
                f"{run_uri(output, 'run.json')} is gone, and plan or commits of its run are there: nobody knows with "
                "which settings they were made. Put it back, or choose another output"
            )
        own = run_files(files)
        other = next((key for key in files if key not in own and not is_hidden(key)), None)
        if other is not None:
            raise ConfigError(
                f"output {output} is not empty ({other!r} is there) and holds no run of flashray; choose a new folder, "
                "so that no file of yours is mixed with restored images or replaced"
            )
        return None
    _refuse_other_configuration(config, old["fingerprint"], found)
    if planned(output):
        _refuse_other_archive(config, listing, failed)
    return old


def goes_on(output: str, record: Mapping[str, Any], found: Mapping[str, Any], listing: pa.Table) -> bool:
    """Whether run.json is that of an unfinished start with --overwrite, of the same configuration and archive."""
    if not record.get("overwriting") or storage.exists(run_uri(output, "summary.json")):
        return False
    same = all(record["fingerprint"].get(name) == value for name, value in found.items())
    return same and record["archive"]["sha256"] == listing_hash(listing)


def planned(output: str) -> bool:
    """Whether a start has come to its plan; before that no image was taken up."""
    return bool(own_names(run_uri(output, "plan"), r"plan-\d+\.parquet"))


def open_record(
    config: RunConfig,
    old: dict[str, Any] | None,
    found: Mapping[str, Any],
    listing: pa.Table,
    pinned: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """run.json of this start, written where it is new; the caller holds the lease.

    `old` is what `examine` returned; `pinned` has hub ids as they were given, and with the commits that they stand for
    from now on.
    """
    output = config.io.output
    record = old
    try:
        if record is None:
            record = {
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "config": to_dict(config),
                "fingerprint": {"sha256": _digest(found, listing), **found},
                "archive": {"images": len(listing), "sha256": listing_hash(listing)},
                "versions": _versions(),
                **({"pinned": dict(pinned)} if pinned else {}),
                **({"overwriting": True} if config.policy.overwrite else {}),  # until the run is finished
                "single_writer": not storage.creates_if_absent(run_uri(output, "probe")),
            }
            _write_listing(output, listing)
            write_record(output, record)
        elif not planned(output) and record["archive"]["sha256"] != listing_hash(listing):
            log.warning("the archive has changed since a start that ended before its plan; it is listed anew")
            _take_listing(output, record, listing)
        elif config.policy.retry_failed or record["archive"]["images"] != len(listing):
            before = record["archive"]["images"]
            if len(listing) > before:
                log.warning("%d images are new in the archive, and are restored too", len(listing) - before)
            _take_listing(output, record, listing)  # failed images may have been repaired or removed, and others added
        if old is not None and not config.policy.plan_only:
            _take_free(record["config"], to_dict(config))
            write_record(output, record)
    except OSError as error:
        raise ConfigError(f"output {output} cannot be written to: {error}") from error
    if record.get("single_writer"):
        log.warning(
            "the store of %s does not honour conditional puts (If-None-Match): two drivers at once would not notice "
            "each other. Make sure that only one works on this output",
            output,
        )
    return record


def erase(output: str, names: Iterable[str], *others: str) -> None:
    """Delete the run that an output holds: its restored images (`names`), its records, and these other parts of it.

    Everything else in the output stays, leases too. run.json is deleted last, so that a half-deleted run is still
    recognised as a run of its configuration.
    """
    if not storage.exists(run_uri(output, "run.json")):
        return
    with ThreadPoolExecutor(_DELETERS) as deleters:
        list(deleters.map(lambda name: storage.delete(storage.join(output, name)), names))
    storage.delete(page_uri(output))
    # the latest first, so that a deletion that is cut short leaves plans that can be read
    plans = [f"plan/{name}" for name in reversed(own_names(run_uri(output, "plan"), r"plan-\d+\.parquet"))]
    for name in (*plans, *_PARTS, *others, "run.json"):
        storage.delete(run_uri(output, name))


def with_choices(config: RunConfig, record: Mapping[str, Any]) -> RunConfig:
    """The configuration in which what was left to the machine is what run.json says of it, if it does."""
    resources = config.resources
    precision = record.get("precision", "auto") if resources.precision == "auto" else resources.precision
    return config.replaced("resources", precision=precision, slots=resources.slots or record.get("slots", 0))


def given_record(output: str) -> tuple[str, dict[str, Any]]:
    """(the URI of an output that a user names, its run.json); ConfigError where it holds no run."""
    output = storage.given(output, "output")
    refuse_old_layout(output)
    record = read_record(output)
    if record is None:
        raise ConfigError(f"output {output} holds no run; name the output of flashray restore")
    return output, record


def read_record(output: str) -> dict[str, Any] | None:
    """run.json, or None where there is no run yet."""
    try:
        data = storage.read_bytes(run_uri(output, "run.json"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"output {output} cannot be read: {error}") from error
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{run_uri(output, 'run.json')} is damaged ({error}); choose another output") from error
    if not _is_record(record):
        raise ConfigError(f"{run_uri(output, 'run.json')} is not the record of a run; choose another output")
    return record


def _is_record(value: Any) -> bool:
    """Whether a value of run.json has what every run's has."""
    if not (isinstance(value, dict) and isinstance(value.get("created"), str)):
        return False
    needed, optional = ("config", "fingerprint", "archive"), ("budget", "mlflow", "pinned", "registered", "versions")
    if not all(isinstance(value.get(name), dict) for name in needed):
        return False
    io = value["config"].get("io")
    known = isinstance(io, dict) and io.get("format") in get_args(Format)
    known = known and io.get("shards", "none") in get_args(Shards)
    counted = isinstance(value["archive"].get("images"), int)
    if not all(isinstance(value.get(name) or {}, dict) for name in optional):
        return False
    named = all(isinstance(source, str) for source in (value.get("pinned") or {}).values())
    return known and counted and named


def write_record(output: str, record: Mapping[str, Any]) -> None:
    """Replace run.json."""
    storage.put_bytes(run_uri(output, "run.json"), dump(record))


def note_tracked(output: str, record: dict[str, Any], tracked: Mapping[str, Any]) -> None:
    """Record the MLflow run in run.json (`record`), if it has changed."""
    if record.get("mlflow") != tracked:
        record["mlflow"] = dict(tracked)
        write_record(output, record)


def dump(values: Mapping[str, Any]) -> bytes:
    """Readable JSON."""
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _refuse_other_configuration(config: RunConfig, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    compared = (there.keys() | here.keys()) - {"sha256"} - _FREE  # an earlier version may have kept more
    if "recipe.fusion.grain" not in there:  # from before there was a residual, so the weights predict none
        compared -= {"recipe.fusion.grain"}
    names = sorted(name for name in compared if there.get(name) != here.get(name))
    if names:
        typed_as = {name: f"--{typed(name.removeprefix('recipe.'))}" for name in names if "weights." not in name}
        listed = "; ".join(
            f"{typed_as.get(name, name)} is {there.get(name)!r} there and {here.get(name)!r} here" for name in names
        )
        last = posixpath.basename(config.io.output.rstrip("/"))
        raise ConfigError(
            f"output {config.io.output} holds a run of another configuration: {listed}. Choose another output, give "
            f"that run's settings, or add --overwrite {last}, which deletes that run and its images"
        )


def _refuse_other_archive(config: RunConfig, listing: pa.Table, failed: Collection[str]) -> None:
    output, there = config.io.output, read_listing(config.io.output)
    changes = differences(there, listing)
    hint = ""
    if {*changes["changed"], *changes["removed"]} & set(failed):
        hint = "; --retry-failed takes up images that failed and were replaced, and lets go of those that were removed"
    if config.policy.retry_failed:
        for kind in ("changed", "removed"):
            changes[kind] = [key for key in changes[kind] if key not in failed]
    changed = changes["changed"]
    if changed and not changes["removed"] and not {*changed} & {*differences(there, listing, OF_MANIFEST)["changed"]}:
        raise ConfigError(
            f"{len(changed)} images ({first_of(changed)}) have other parameters, noise or masks than the run in "
            f"{output} was planned from. Give that run's manifest again, or choose another output{hint}"
        )
    if changed or changes["removed"]:
        named = [f"{len(keys)} {kind} ({first_of(keys)})" for kind, keys in changes.items() if keys]
        raise ConfigError(
            f"archive {config.io.archive} is not what the run in {output} was planned from: {', '.join(named)}. "
            f"Choose another output for the archive as it is now{hint}"
        )


def read_listing(output: str) -> pa.Table:
    """The listing of the run in an output, as it was taken; ConfigError where it is damaged or gone."""
    uri, lost = run_uri(output, "archive.parquet"), "put it back, or choose another output"
    try:
        return read_table(uri, LISTING, lost, ("key", "size"))
    except OSError as error:
        raise ConfigError(f"{uri} cannot be read ({error}); {lost}") from error


def _take_listing(output: str, record: dict[str, Any], listing: pa.Table) -> None:
    """Replace the listing of the run in an output."""
    if differences(read_listing(output), listing)["changed"]:
        storage.delete(run_uri(output, "severity"))  # σ̂ of other files, or for other parameters
    _write_listing(output, listing)
    record["archive"] = {"images": len(listing), "sha256": listing_hash(listing)}
    write_record(output, record)


def _take_free(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Take the settings of this start that may change into the run's configuration."""
    for name in _FREE:
        *sections, last = name.split(".")
        was, now = there, here
        for section in sections:
            was, now = was.setdefault(section, {}), now[section]
        was[last] = now[last]


def _write_listing(output: str, listing: pa.Table) -> None:
    storage.put_bytes(run_uri(output, "archive.parquet"), parquet(listing))


def _digest(found: Mapping[str, Any], listing: pa.Table) -> str:
    text = json.dumps(found, sort_keys=True) + listing_hash(listing)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    """Of Python, the platform and the packages that results depend on."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
