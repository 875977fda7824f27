"""The numbers of a run: summary.json, its metrics for tracking, and the quote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flashray import storage
from flashray.errors import ConfigError
from flashray.metrics import mean_interval
from flashray.pipeline.archive import Archive
from flashray.pipeline.commit import SCORED
from flashray.pipeline.cost import CostModel, Quoted, predict_full, predict_plan
from flashray.pipeline.progress import clock
from flashray.pipeline.run_config import METRICS
from flashray.pipeline.run_folder import run_uri
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.workload import workload_of

# what is scored, by the prefix of its metrics' names
STAGES = {"measurement_": "degraded", "decoded_": "D(ẑ)", "estimate_": "0 NFE", "": "restored"}
_BINS = 10
_FEWEST = 3  # values that an interval is made of
_FAILURES = 20  # listed in summary.json; the plan and the commits hold them all


def summarise(
    state: RunStatus, chain: int, unavailable: dict[str, str], slots: int = 1, quoted: Quoted | None = None
) -> dict[str, Any]:
    """The content of summary.json, without the times of this start.

    Means are over the images that have the value; a metric without any value is null. `chain` is the length of the full
    chain in NFE; `unavailable` names metrics that could not be computed, and why; `slots` is the number of images that
    a solver actor has in flight.
    """
    results = state.results.filter(pc.equal(state.results["status"], "ok"))
    failures = state.failures
    nfe = _numbers(results, "nfe")
    summary: dict[str, Any] = {
        "images": len(state.plan),
        "restored": len(results),
        "failed": len(failures),
        "mean_nfe": _mean(nfe),
        "full_chain_nfe": chain,
        "nfe_saved": _finite(1 - nfe.mean() / chain) if len(nfe) else None,
        "mean_sigma_hat": _mean(_finite_numbers(results, "sigma_hat")),
        "mean_spread": _mean(_numbers(results, "spread")),
        "unchanged": pc.sum(results["unchanged"]).as_py() or 0,
        "lost": len(results) - results["lost"].null_count,
        "warnings": len(results) - results["warnings"].null_count,
        "fallbacks": pc.sum(state.planned["fallback"]).as_py() or 0,
        "estimated": estimated(state.planned),
    }
    for prefix in SCORED:
        for metric in METRICS:
            summary[prefix + metric] = _mean(_numbers(results, prefix + metric))
    summary["scored"] = max(len(_numbers(results, metric)) for metric in METRICS)
    for metric in METRICS:
        values = _numbers(results, metric)
        _, low, high = mean_interval(values)
        tells = len(values) >= _FEWEST and math.isfinite(low) and math.isfinite(high)
        summary[f"{metric}_interval"] = [low, high] if tells else None
    summary["unavailable"] = unavailable
    seconds = _finite(float(_numbers(state.results, "seconds").sum()))
    predicted = predict_plan(state.planned, slots, quoted.actors, quoted.cost).solver_seconds if quoted else None
    summary["solver_seconds"] = seconds
    summary["predicted_solver_seconds"] = predicted and round(predicted, 3)
    full = predict_full(workload_of(state.planned), chain, slots, quoted.actors, quoted.cost) if quoted else None
    summary["predicted_full_chain_seconds"] = full and round(full.solver_seconds, 3)
    summary["predicted_over_actual_seconds"] = round(predicted / seconds, 4) if predicted and seconds else None
    summary["distributions"] = distributions(state)
    summary["failures"] = failures.slice(0, _FAILURES).to_pylist()
    return summary


def beside_the_images(archive: Archive, copied: pa.Table) -> dict[str, Any]:
    """What summary.json says of the archive's other files; `copied` is a table of `others.OTHERS`."""
    failed = copied.filter(pc.is_valid(copied["error"]))
    return {
        "other_files": len(archive.others),
        "copied_files": len(copied) - len(failed),
        "not_copied": failed.slice(0, _FAILURES).select(["key", "error"]).to_pylist(),
        "unreadable_folders": archive.unreadable,
    }


def read_summary(output: str) -> dict[str, Any] | None:
    """summary.json, or None where the run is not finished; ConfigError where it is damaged."""
    uri = run_uri(output, "summary.json")
    try:
        found = json.loads(storage.read_bytes(uri))
        counts = [found[name] for name in ("images", "restored", "failed")] + [found["mean_nfe"] or 0]
        if not all(isinstance(count, int | float) for count in counts):
            raise TypeError("its counts are no numbers")
        numbers(found)
        table(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{uri} is damaged ({error}); delete it, and the same command writes it again") from error
    return dict(found)


def remarks(
    found: Mapping[str, Any], problems: str = "problems.csv", learned: bool = False, referenced: bool = False
) -> list[str]:
    """What the last message says of the files, as lines.

    `problems` says where `problems.csv` is, `learned` whether learned fusion decided what would change,
    `referenced` whether references are given.
    """
    lines = of_estimates(found["estimated"])
    if found["scored"] < found["restored"] and (found["scored"] or referenced):
        lines.append(
            f"scored are {found['scored']:,} of {found['restored']:,} images: the others' references cannot be read"
        )
    if found["unchanged"]:
        lines.append(
            f"{found['unchanged']:,} images would not change by half a grey level, and are the same files"
            + ("; where they are damaged all the same, --fusion.grain 1 restores more" if learned else "")
        )
    if found["lost"]:
        lines.append(f"{found['lost']:,} files lost something that their format cannot hold: {problems} names them")
    if found["warnings"]:
        lines.append(f"{found['warnings']:,} files were unclear: {problems} names them")
    left = found["other_files"] - found["copied_files"]
    if left > 0:
        how = "could not be copied" if found["not_copied"] else "are not copied; --copy-others does"
        lines.append(f"{left:,} files of the archive that are no images {how}")
    if found["unreadable_folders"]:
        lines.append(f"left out, because they cannot be read: {', '.join(found['unreadable_folders'])}")
    return lines


def estimated(planned: pa.Table) -> int:
    """How many images have parameters or noise that nobody gave."""
    return pc.sum(planned["estimated"]).as_py() or 0


def of_estimates(count: int) -> list[str]:
    """What is said of so many images with estimated parameters: one line, or none."""
    what = "the severity encoder's estimates; rows of a manifest would replace them"
    return [f"parameters of {count:,} images are {what}"] if count else []


def distributions(state: RunStatus) -> dict[str, dict[str, Any]]:
    """Mean, quantiles and histogram of nfe and sigma_hat over the plan."""
    found = {}
    for name in ("nfe", "sigma_hat"):
        values = _finite_numbers(state.planned, name)
        if len(values):
            counts, edges = np.histogram(values, bins=_BINS)
            found[name] = {
                "mean": float(values.mean()),
                **{f"p{q}": float(np.percentile(values, q)) for q in (10, 50, 90)},
                "max": float(values.max()),
                "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            }
    return found


def numbers(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics for tracking: every number of summary.json, with ends of intervals and quantiles, or None."""
    found: dict[str, float | None] = {}
    for name, value in summary.items():
        if name.endswith("_interval"):
            found |= dict(zip((f"{name}_low", f"{name}_high"), value or (None, None), strict=True))
        elif name == "distributions":
            for of, one in value.items():
                found |= {f"{of}_{which}": number for which, number in one.items() if which != "histogram"}
        elif value is None or isinstance(value, int | float):
            found[name] = value
    return found


def quote(
    state: RunStatus,
    chain: int,
    slots: int = 1,
    quoted: Quoted | None = None,
    budget: Mapping[str, Any] | None = None,
    storage: int | None = None,
    samples: int = 1,
) -> str:
    """The plan's cost as text: images, histogram of NFE, total, share saved, storage, and time if it was measured.

    `chain` is the length of the full chain in NFE, `slots` the images that a solver actor has in flight, `budget` the
    budget's entry in run.json, and `storage` the bytes that the restored images will take.
    """
    planned = state.planned
    load = workload_of(planned)
    unreadable = len(state.plan) - len(load)
    lines = [f"{len(state.plan):,} images, {unreadable:,} of them unreadable"]
    if len(load):
        lines += _histogram(np.ceil(load.evaluations / load.windows).astype(np.int64))
        windows, total = int(load.windows.sum()), samples * int(load.evaluations.sum())
        full = samples * chain * windows
        each = f" of {samples} samples" if samples > 1 else ""
        lines.append(
            f"{load.pixels.sum() / 1e6:,.2f} megapixels in {windows:,} windows; total {total:,} window evaluations"
            f"{each}, {load.mean_nfe:.1f} NFE an image; the full chain takes {full:,}: {1 - total / full:.1%} saved"
        )
        fallbacks = pc.sum(planned["fallback"]).as_py() or 0
        if fallbacks:
            lines.append(f"{fallbacks:,} images fall back to the full chain: σ̂ is beyond what the start can express")
        lines += of_estimates(estimated(planned))
    if budget:
        lines.append(_coverage(budget))
    if storage is not None and len(load):
        size = f"{storage / 1e9:,.1f} GB" if storage > 1e9 else f"{storage / 1e6:,.1f} MB"
        lines.append(f"about {size} of storage for the restored images")
    if quoted and len(load):
        lines += _price(planned, chain, slots, quoted)
    return "\n".join(lines)


def _histogram(nfe: npt.NDArray[np.int64]) -> list[str]:
    counts, edges = np.histogram(nfe, bins=np.unique(np.linspace(nfe.min(), nfe.max() + 1, _BINS + 1).round()))
    width = len(f"{int(edges[-1]) - 1:,}")
    return [
        f"  NFE {int(low):>{width},} … {int(high) - 1:>{width},}  {count:>8,}  {'█' * round(30 * count / counts.max())}"
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
    ]


def _coverage(budget: Mapping[str, Any]) -> str:
    """The effect of a budget: the factor on σ̂ that is left."""
    ((name, value),) = budget["requested"].items()
    if budget["scale"] == 1:
        return f"{name} {value:g} is enough: every chain starts at the step that matches σ̂"
    return (
        f"{name} {value:g}: every chain starts at {budget['scale']:.1%} of the σ̂ that the recipe asks for "
        f"(start.sigma_scale {budget['sigma_scale']:.4g}), {budget['mean_nfe']:.1f} NFE an image instead of "
        f"{budget['mean_nfe_without']:.1f}; {budget['decoded_alone']:,} images are left with ẑ decoded alone"
    )


def _price(planned: pa.Table, chain: int, slots: int, quoted: Quoted) -> list[str]:
    """Time, device hours, and the figures they come from."""
    cost, actors = quoted.cost, quoted.actors
    found = predict_plan(planned, slots, actors, cost)
    full = predict_full(workload_of(planned), chain, slots, actors, cost)
    if quoted.key["device"] == "cuda":
        hours, pool = f"{found.device_hours:.3g} GPU-hours", f"{actors:,} GPU{'s' * (actors > 1)}"
    else:
        threads = quoted.key["threads"]
        hours = f"{found.device_hours * threads:.3g} core-hours"
        pool = f"{actors:,} CPU actor{'s' * (actors > 1)} of {threads} thread{'s' * (threads > 1)}"
    return [
        f"about {clock(found.wall_seconds)} on {pool} with {slots} slots, {clock(cost.start_up_seconds)} of it to "
        f"start, and {hours}" + (f"; the full chain: {clock(full.wall_seconds)}" if full else ""),
        f"{found.units:,} units, {found.slot_utilization:.1%} of the slots filled; measured: "
        f"{cost.nfe_seconds:.3g} s an NFE with all slots filled, {_besides(cost)} besides",
    ]


def _besides(cost: CostModel) -> str:
    each = f"{cost.decode_seconds + cost.other_seconds:.3g} s an image"
    megapixel = cost.decode_megapixel + cost.other_megapixel
    if not megapixel:
        return each
    return f"{each} and {megapixel:.3g} s a megapixel, {cost.step_megapixel:.3g} s a megapixel and update"


def table(summary: Mapping[str, Any]) -> str:
    """The quality table of a summary as text; empty if nothing was scored."""
    lines = []
    for prefix, name in STAGES.items():
        values = {metric: summary.get(prefix + metric) for metric in METRICS}
        if any(value is not None for value in values.values()):
            lines.append(f"  {name:<10}" + "".join(f"{_cell(metric, value):>9}" for metric, value in values.items()))
    if not lines:
        return ""
    return "\n".join([f"  {'':<10}" + "".join(f"{metric.upper():>9}" for metric in METRICS), *lines])


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if metric == "psnr" else f"{value:.4f}"


def _numbers(rows: pa.Table, name: str) -> npt.NDArray[np.float64]:
    return rows[name].drop_null().cast(pa.float64()).to_numpy()


def _finite_numbers(rows: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """Without σ̂ that is NaN or infinite: such an image falls back to the full chain, and is counted there."""
    values = _numbers(rows, name)
    return values[np.isfinite(values)]


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return _finite(float(values.mean())) if len(values) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
