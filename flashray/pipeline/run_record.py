"""The run directory's identity: run.json, the listing it was made from, and whether this start belongs to it."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import platform
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flashray import storage
from flashray.errors import ConfigError
from flashray.pipeline.archive import differences, listing_hash
from flashray.pipeline.run_config import ReconstructConfig, to_dict

# What a run's results do not depend on: where it is written, how many actors share the work; the weights' places, which
# the weights' hashes stand for; and the manifest's place, since the listing holds what it says of each image. A budget
# has its own entry in run.json, because it may change until something is committed.
_FREE = {
    *("output", "mlflow", "plan_only", "retry_failed", "overwrite", "device", "solver_actors", "severity_actors"),
    *("autoscale_seconds", "budget_seconds", "budget_gpu_hours"),
    *("prior", "start.severity_encoder", "manifest"),
}
_PACKAGES = ("flashray", "torch", "ray", "diffusers", "pyarrow", "pillow", "mlflow")
_PARTS = (
    *("summary.json", "contact_sheet.png", "commits", "reconstructions", "attempts", "severity", "plan", "cost.json"),
    *("tracking", "archive.parquet"),
)
_NAMED = 3  # keys in a message
log = logging.getLogger(__name__)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{a: {b: 1}} as {a.b: 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def identity(config: ReconstructConfig, weights: Mapping[str, str | None]) -> dict[str, Any]:
    """Everything but the listing that a run's bytes depend on, as one flat dict."""
    flat = flatten({name: value for name, value in to_dict(config).items() if name not in _FREE})
    flat = {name: value for name, value in flat.items() if name not in _FREE}
    if config.start.mode == "full":  # a full chain has no use for the rest of the start
        flat = {name: value for name, value in flat.items() if not name.startswith("start.") or name == "start.mode"}
    flat |= {f"weights.{name}": digest for name, digest in weights.items()}
    return json.loads(json.dumps(flat))


def open_run(
    config: ReconstructConfig, found: Mapping[str, Any], listing: pa.Table, failed: Collection[str] = ()
) -> dict[str, Any]:
    """The content of run.json: of the run that the output already holds, else of a new one.

    Args:
        found: `identity` of this start.
        failed: keys that failed before; a retry lets these change in the archive.

    Raises:
        ConfigError: when the output holds a run of another configuration or archive; the difference is named.
    """
    old = read_record(config.output)
    record: dict[str, Any]
    if old is None:
        record = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": to_dict(config),
            "fingerprint": {"sha256": _digest(found, listing), **found},
            "archive": {"images": len(listing), "sha256": listing_hash(listing)},
            "versions": _versions(),
        }
        try:
            record["single_writer"] = not storage.creates_if_absent(storage.join(config.output, "probe"))
            _write_listing(config.output, listing)
            write_record(config.output, record)
        except OSError as error:
            raise ConfigError(f"output {config.output} cannot be written to: {error}") from error
    else:
        record = old
        _refuse_other_configuration(config, old["fingerprint"], found)
        _refuse_other_archive(config, listing, failed)
    if record.get("single_writer"):
        log.warning(
            "the store of %s does not honour conditional puts (If-None-Match): two drivers at once would not notice "
            "each other. See to it that only one works on this output",
            config.output,
        )
    return record


def erase(output: str, *others: str) -> None:
    """Delete the run that an output holds, and these other parts of it; what else lies there stays, leases too.

    run.json goes last: a run that is half deleted is still one, of its own configuration.
    """
    if storage.exists(storage.join(output, "run.json")):
        for name in (*_PARTS, *others, "run.json"):
            storage.delete(storage.join(output, name))


def read_record(output: str) -> dict[str, Any] | None:
    """run.json, or None where there is no run yet."""
    try:
        data = storage.read_bytes(storage.join(output, "run.json"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"output {output} cannot be read: {error}") from error
    try:
        return json.loads(data)
    except ValueError as error:
        raise ConfigError(f"{output}/run.json is damaged ({error}); choose another --output") from error


def write_record(output: str, record: Mapping[str, Any]) -> None:
    """Replace run.json."""
    storage.put_bytes(storage.join(output, "run.json"), dump(record))


def note_tracked(output: str, record: dict[str, Any], tracked: Mapping[str, Any]) -> None:
    """Note in run.json (`record`) which MLflow run it is, where that is news."""
    if record.get("mlflow") != tracked:
        record["mlflow"] = dict(tracked)
        write_record(output, record)


def dump(values: Mapping[str, Any]) -> bytes:
    """Readable JSON."""
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _refuse_other_configuration(config: ReconstructConfig, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    names = sorted(name for name in (there.keys() | here.keys()) - {"sha256"} if there.get(name) != here.get(name))
    if names:
        listed = "; ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in names)
        raise ConfigError(
            f"output {config.output} holds a run of another configuration: {listed}. "
            "Choose another --output, or give that run's settings"
        )


def _refuse_other_archive(config: ReconstructConfig, listing: pa.Table, failed: Collection[str]) -> None:
    path = storage.join(config.output, "archive.parquet")
    old = pq.read_table(io.BytesIO(storage.read_bytes(path)))
    changes = differences(old, listing)
    if config.retry_failed:
        repaired = [key for key in changes["changed"] if key in failed]
        changes["changed"] = [key for key in changes["changed"] if key not in failed]
    else:
        repaired = []
    named = [
        f"{len(keys)} {kind} ({', '.join(keys[:_NAMED])}{', …' if len(keys) > _NAMED else ''})"
        for kind, keys in changes.items()
        if keys
    ]
    if named:
        hint = ""
        if set(changes["changed"]) & set(failed):
            hint = "; --retry-failed takes up images that failed and were replaced"
        raise ConfigError(
            f"archive {config.archive} is not what the run in {config.output} was planned from: {', '.join(named)}. "
            f"Choose another --output for the archive as it is now{hint}"
        )
    if repaired:
        _write_listing(config.output, listing)


def _write_listing(output: str, listing: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(listing, sink)
    storage.put_bytes(storage.join(output, "archive.parquet"), sink.getvalue())


def _digest(found: Mapping[str, Any], listing: pa.Table) -> str:
    text = json.dumps(found, sort_keys=True) + listing_hash(listing)
    return hashlib.sha256(text.encode()).hexdigest()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
