"""The page of a run, report.html: what its records say, and a sample of its photos before and after."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from flashray import storage
from flashray.errors import ImageError
from flashray.images import decode_spread, saved
from flashray.pipeline.run_config import METRICS, RunConfig, flatten, to_dict
from flashray.pipeline.run_folder import page_uri, run_uri
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.sample_sheet import ESTIMATED, make_sheet, read_sample, spread
from flashray.pipeline.summary import STAGES, remarks
from flashray.report.page import Card, Column, Gallery, Histogram, Page, Picture, Table, render
from flashray.report.pictures import Map, views
from flashray.restorer import Restorer

BY_SEVERITY, MOVERS = 8, 3  # pictures: over the range of σ̂, and at each end of the gain
ROWS = 400  # images in the table
FAILURES = 100
SPREAD_SHOWN = 16.0  # grey levels of standard deviation at the end of the map's colours
_BINS = 12
_DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}
_COLUMNS = {
    "key": Column("File"),
    "result": Column("Result"),
    "size": Column("Pixels"),
    "sigma_hat": Column("σ̂", 3, "predicted error of the latent: the severity"),
    "nfe": Column("NFE", 2, "denoiser evaluations"),
    "seconds": Column("Seconds", 2, "share of the solver's time"),
    "spread": Column("Spread", 2, "mean standard deviation over the samples, in grey levels"),
    "measurement_psnr": Column("PSNR before", 2, "dB, degraded against the reference"),
    "psnr": Column("PSNR after", 2, "dB, restored against the reference"),
    "gain": Column("Gain", 2, "dB of PSNR that the restoration adds", signed=True),
    "measurement_lpips": Column("LPIPS before", 3, "degraded against the reference; lower is better"),
    "lpips": Column("LPIPS after", 3, "restored against the reference; lower is better"),
    "parameters": Column("Parameters", None, "estimated: by the severity encoder, where no manifest gave them"),
    "remarks": Column("Remarks"),
}


def write_pages(restorer: Restorer, config: RunConfig, status: RunStatus, found: Mapping[str, Any]) -> None:
    """Write the contact sheet, where there is anything to show, and the page; arguments as `make_page`."""
    sheet = make_sheet(restorer, config.io, status)
    if sheet is not None:
        storage.put_bytes(run_uri(config.io.output, "contact_sheet.png"), saved(sheet, "PNG"))
    storage.put_bytes(page_uri(config.io.output), make_page(restorer, config, status, found))


def make_page(restorer: Restorer, config: RunConfig, status: RunStatus, found: Mapping[str, Any]) -> bytes:
    """The page of a run that is finished, or of what is there of it; equal records give equal bytes.

    The run's restorer, on the CPU, measures the sample again; `found` is the content of summary.json.
    """
    done = status.results.filter(pc.equal(status.results["status"], "ok"))
    best, worst = _movers(done)
    sample = [row["key"] for row, _ in spread(status, BY_SEVERITY, {*best, *worst})]
    rows = {row["key"]: row for row in done.filter(pc.is_in(done["key"], _keys([*sample, *best, *worst]))).to_pylist()}
    plan = {row["key"]: row for row in status.plan.filter(pc.is_in(status.plan["key"], _keys(rows))).to_pylist()}
    residuals: list[float] = []
    pictures = {key: _picture(restorer, config, plan[key], rows[key], residuals) for key in rows}
    galleries = [
        Gallery(title, note, chosen)
        for title, note, keys in (
            ("From the easiest to the hardest", "Evenly over the images in the order of σ̂.", sample),
            ("Most improved", "The largest gains in PSNR of all images.", best),
            ("Least improved", "The smallest gains in PSNR of all images; a loss is negative.", worst),
        )
        if (chosen := [picture for key in keys if (picture := pictures[key]) is not None])
    ]
    recipe, pending = config.recipe, len(status.pending)
    said = [f"Not finished: {pending:,} images are pending, and the same command continues."] if pending else []
    said += remarks(found) if "other_files" in found else []
    said += [f"{metric} is empty: {why}" for metric, why in found["unavailable"].items()]
    failures = status.failures
    output = storage.redact(status.output)
    page = Page(
        title=f"Restored: {output.rstrip('/').rpartition('/')[2]}",
        subtitle=f"{recipe.degradation.name}, {recipe.start.mode}({recipe.solver.name}), {output}",
        cards=_cards(found, residuals, pending),
        remarks=said,
        galleries=galleries,
        histogram=_starts(status.planned, recipe.solver.steps),
        scores=_scores(found),
        images=_images(status, set(rows)),
        failures=[(row["key"], row["error"]) for row in failures.slice(0, FAILURES).to_pylist()],
        failures_note=f"{len(failures):,} in all; _flashray/problems.csv of a finished run names every one.",
        facts=[
            (name, f"{value:g}" if isinstance(value, float) else str(value))
            for name, value in flatten(to_dict(config)).items()
            if value is not None and not name.startswith("tracking.")
        ],
    )
    return render(page)


def _keys(keys: Collection[str]) -> pa.Array:
    return pa.array(list(keys), pa.string())


def _movers(done: pa.Table) -> tuple[list[str], list[str]]:
    """Keys with the largest gains in PSNR, the largest first, and with the smallest, the smallest first."""
    scored = done.append_column("gain", pc.subtract(done["psnr"], done["measurement_psnr"]))
    scored = scored.filter(pc.fill_null(pc.is_finite(scored["gain"]), False))
    keys = scored.sort_by([("gain", "descending"), ("key", "ascending")])["key"].to_pylist()
    count = min(MOVERS, len(keys) // 4)
    return keys[:count], keys[len(keys) - count :][::-1]


@torch.no_grad()
def _picture(
    restorer: Restorer, config: RunConfig, planned: dict[str, Any], row: dict[str, Any], residuals: list[float]
) -> Picture | None:
    """One photo of the sample, and its residual into `residuals`; None where it cannot be read any more."""
    found = read_sample(restorer, config.io, planned, row)
    if found is None:
        return None
    photo, measured, restored = found
    shown = measured.shown_BCHW[0].cpu()
    if shown.shape != restored.shape:
        return None
    facts = [] if row["sigma_hat"] is None else [("σ̂", f"{row['sigma_hat']:.3f}")]
    facts.append(("NFE", f"{row['nfe']:,.2f}".rstrip("0").rstrip(".")))
    for metric, unit in (("psnr", " dB"), ("lpips", "")):
        before, after, digits = row[f"measurement_{metric}"], row[metric], _DIGITS[metric]
        if before is not None and after is not None:
            facts.append((metric.upper(), f"{before:.{digits}f} → {after:.{digits}f}{unit}"))
    if photo.noise_std > 0:
        error = measured.y_BCHW - measured.operator.A(restored[None].to(measured.y_BCHW))
        residuals.append(error.double().square().mean().sqrt().item() / (2 * photo.noise_std))
        facts.append(("residual", f"{residuals[-1]:.2f} × noise"))
    height, width = measured.image_size
    severity = restorer.estimate(measured).severity if height * width <= ESTIMATED else None
    maps = []
    if severity is not None:
        maps.append(Map("Severity map", "σ̂ 0", "1", restorer.sigma_maps(severity, (height, width))[0]))
    if (
        row["samples"]
        and (spread_HW := _spread(storage.join(config.io.output, row["samples"][-1]["name"]))) is not None
    ):
        facts.append(("spread", f"{row['spread']:.2f} levels"))
        maps.append(Map("Spread", "0", f"{SPREAD_SHOWN:g} levels", spread_HW / SPREAD_SHOWN))
    if row["unchanged"]:
        facts.append(("unchanged", "the same file"))
    return Picture(planned["key"], views(shown, restored, maps), facts, maps)


def _spread(uri: str) -> torch.Tensor | None:
    """A map of the samples' spread; None where it cannot be read any more."""
    try:
        return decode_spread(storage.read_bytes(uri))
    except (OSError, ImageError):
        return None


def _cards(found: Mapping[str, Any], residuals: Sequence[float], pending: int) -> list[Card]:
    missing = [f"{count:,} {what}" for count, what in ((found["failed"], "failed"), (pending, "pending")) if count]
    unchanged = f"{found['unchanged']:,} needed no change" if found["unchanged"] else ""
    cards = [
        Card(
            "Images restored",
            f"{found['restored']:,} of {found['images']:,}",
            ", ".join(missing) or unchanged or "none failed",
        )
    ]
    if found["mean_nfe"] is not None:
        detail = f"of {found['full_chain_nfe']:,} in the full chain: {found['nfe_saved']:.1%} saved"
        cards.append(Card("Denoiser evaluations an image", f"{found['mean_nfe']:,.1f}", detail))
    if found["solver_seconds"]:
        full = found.get("predicted_full_chain_seconds")  # of the quote, where one was asked for
        saved = f"{1 - found['solver_seconds'] / full:.1%} saved" if full else ""
        detail = f"the full chain: about {_duration(full)}, {saved}" if full else ""
        cards.append(Card("Solver time", _duration(found["solver_seconds"]), detail))
    if found["psnr"] is not None and found["measurement_psnr"] is not None:
        gain = found["psnr"] - found["measurement_psnr"]
        cards.append(Card("Mean PSNR", f"{found['psnr']:.2f} dB", f"{gain:+.2f} dB against the degraded images"))
    elif found["mean_sigma_hat"] is not None:
        cards.append(Card("Mean severity σ̂", f"{found['mean_sigma_hat']:.3f}", "0 is a clean image, 1 a lost one"))
    if residuals:
        detail = "‖y - A(x̂)‖, median of the pictures below; 1 is the noise alone"
        cards.append(Card("Residual", f"{np.median(residuals):.2f} × noise", detail))
    return cards


def _duration(seconds: float) -> str:
    """Such as 38 s, 12 min 5 s, 1 h 55 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _starts(planned: pa.Table, chain: int) -> Histogram | None:
    """How many images start at which step."""
    steps = planned["start_step"].drop_null().to_numpy()
    if not len(steps):
        return None
    width = -(-(steps.max() + 1 - steps.min()) // _BINS)  # whole steps, the same for all bars
    edges = np.arange(steps.min(), steps.max() + 1 + width, width)
    counts, _ = np.histogram(steps, bins=edges)
    note = f"Images by the step at which their reverse diffusion starts; the full chain starts at {chain:,}."
    return Histogram("Start steps", note, "steps", edges.tolist(), counts.tolist())


def _scores(found: Mapping[str, Any]) -> Table | None:
    """Means against the references, a row a stage."""
    used = [metric for metric in METRICS if any(found[prefix + metric] is not None for prefix in STAGES)]
    rows = [
        [name, *(found[prefix + metric] for metric in used)]
        for prefix, name in STAGES.items()
        if any(found[prefix + metric] is not None for metric in used)
    ]
    columns = [Column("Mean of"), *(Column(metric.upper(), _DIGITS[metric]) for metric in used)]
    note = "Means against the references. PSNR in dB and SSIM: higher is better; LPIPS: lower is better."
    if found["estimated"]:
        note += f" The parameters of {found['estimated']:,} images are estimates."
    return Table(columns, rows, note) if rows else None


def _images(status: RunStatus, pictured: Collection[str]) -> Table:
    """A row an image, in the order of σ̂; of a large run those with pictures, and others evenly over that order."""
    plan = status.plan.sort_by([("sigma_hat", "ascending"), ("key", "ascending")])
    total = len(plan)
    if total > ROWS:
        chosen = set(np.linspace(0, total - 1, ROWS - len(pictured)).round().astype(int).tolist())
        chosen |= set(np.flatnonzero(pc.is_in(plan["key"], _keys(pictured)).to_numpy()).tolist())
        plan = plan.take(pa.array(sorted(chosen)))
    results = {
        row["key"]: row for row in status.results.filter(pc.is_in(status.results["key"], plan["key"])).to_pylist()
    }
    pending = set(status.pending["key"].to_pylist()) if len(status.pending) else set()
    rows = [_row(row, results.get(row["key"]), row["key"] in pending) for row in plan.to_pylist()]
    used = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
    note = "" if total <= ROWS else f"{len(rows):,} of {total:,}; the plan and the commits in _flashray hold all."
    return Table([_COLUMNS[name] for name in used], [[row.get(name) for name in used] for row in rows], note)


def _row(planned: dict[str, Any], result: dict[str, Any] | None, pending: bool) -> dict[str, Any]:
    """The values of `_COLUMNS` of an image."""
    row = {"key": planned["key"], "sigma_hat": planned["sigma_hat"]}
    if planned["width"]:
        row["size"] = f"{planned['width']} × {planned['height']}"
    if planned["estimated"]:
        row["parameters"] = "estimated"
    if pending or result is None:
        return row | {"result": "pending" if pending else "failed"}
    same = ("nfe", "seconds", "spread", "measurement_psnr", "psnr", "measurement_lpips", "lpips")
    row |= {name: result[name] for name in same}
    if row["psnr"] is not None and row["measurement_psnr"] is not None and math.isfinite(row["measurement_psnr"]):
        row["gain"] = row["psnr"] - row["measurement_psnr"]
    row["result"] = "failed" if result["status"] != "ok" else "unchanged" if result["unchanged"] else "restored"
    notes = [result["warnings"] or "", f"lost: {result['lost']}" if result["lost"] else ""]
    return row | {"remarks": "; ".join(note for note in notes if note) or None}
