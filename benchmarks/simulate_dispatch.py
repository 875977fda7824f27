"""Simulate the dispatch of an archive's units to 8 … 1024 solver slots: a table and a figure.

python -m benchmarks.simulate_dispatch [--output docs/results] [--plan RUN/_flashray/plan]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.ticker import FuncFormatter
from PIL import Image

from benchmarks.command import run_command
from benchmarks.dispatch import WAYS, Result, compare, disturbed, tapered
from benchmarks.packing import mixed_steps
from benchmarks.pages.style import COLOURS, MARKERS, panels, with_legend
from benchmarks.simulation import Pool
from flashray.errors import ConfigError
from flashray.pipeline.units import choose_unit_images
from flashray.pipeline.workload import Integers, Workload

POOLS = (1, 2, 4, 8, 16, 32, 64, 128)  # actors


@dataclass(frozen=True)
class DispatchConfig:
    """What to simulate.

    Args:
        output: folder for dispatch.md and dispatch.png.
        plan: a run's folder of plan files, whose start steps are drawn from; default a synthetic mixed archive.
        images: of the archive.
        chain: NFE of the full chain, for the synthetic archive.
        slots: images that an actor has in flight.
        many: actors of the large pool.
        many_images: of the archive for the large pool.
    """

    output: str = "docs/results"
    plan: str | None = None
    images: int = 100_000
    chain: int = 1000
    slots: int = 8
    many: int = 1024
    many_images: int = 1_000_000


def simulate_dispatch(config: DispatchConfig) -> None:
    steps, many = (start_steps(config, images) for images in (config.images, config.many_images))
    by_pool = {
        name: [compare(steps, way, config.slots, Pool(actors)) for actors in POOLS] for name, way in WAYS.items()
    }
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dispatch.md").write_text("\n".join(report(config, steps, many, by_pool)) + "\n")
    figure(config, by_pool).save(folder / "dispatch.png")
    print(f"{folder / 'dispatch.md'}\n{folder / 'dispatch.png'}")


def start_steps(config: DispatchConfig, images: int) -> Integers:
    """[images] start steps of the archive, in the order of its listing."""
    if config.plan is None:
        return mixed_steps(images, config.chain)
    files = sorted(Path(config.plan).glob("*.parquet"))
    if not files:
        raise ConfigError(f"plan {config.plan} holds no plan-*.parquet; name the plan folder of a run")
    nfe = pq.read_table(files[-1], columns=["nfe"])["nfe"].drop_null().to_numpy().astype(np.int64)
    return np.random.default_rng(0).choice(nfe, images)


def report(config: DispatchConfig, steps: Integers, many: Integers, by_pool: dict[str, list[Result]]) -> Iterator[str]:
    """The page's lines."""
    source = (
        f"drawn from {config.plan}" if config.plan else f"of a synthetic archive with a chain of {config.chain:,} steps"
    )
    yield "# Simulated dispatch"
    yield ""
    yield (
        f"`python -m benchmarks.simulate_dispatch` simulates {len(steps):,} images with start steps {source} (mean "
        f"{steps.mean():.1f}, median {np.median(steps):.0f}, most {steps.max()}). Each actor has {config.slots} slots, "
        "and one unit waits at it beside the one it works on. A batched step takes the same time however few of its "
        "slots are filled. The ideal fills every slot of every actor to the end; the tables give makespan over ideal."
    )
    yield ""
    yield "![makespan over ideal](dispatch.png)"
    yield ""
    yield (
        "Units with equal numbers of images, dispatched longest first, come close to the ideal, because their cost "
        "falls towards the end. But the first of them cost many times as much as the last, and an interruption loses "
        "that much. Units of equal cost bound the loss; they need the smaller units at the end. All ways use the unit "
        "size that a run would choose, a multiple of the slots, which helps the buckets too."
    )
    yield from table(
        ["solver slots (actors × slots in flight)", *(f"{actors * config.slots:,}" for actors in POOLS)],
        [[name, *(f"{one.over_ideal:.4f}" for one in results)] for name, results in by_pool.items()]
        + [["units of the last row", *(f"{one.units:,}" for one in by_pool["smaller units at the end"])]],
    )
    yield ""
    yield f"Slots filled inside units, at {POOLS[-1] * config.slots:,} slots:"
    yield from table(
        ["", *by_pool], [["slots filled", *(f"{results[-1].slot_utilization:.2%}" for results in by_pool.values())]]
    )
    for title, archive, actors in (
        (f"{POOLS[-1]} actors, {len(steps):,} images", steps, POOLS[-1]),
        (f"{config.many:,} actors, {len(many):,} images", many, config.many),
    ):
        chosen = choose_unit_images(Workload.of_windows(archive), actors, config.slots)
        sizes = {f"{size}": size for size in (8, 32, 128, 512)} | {f"{chosen} (chosen)": chosen}
        yield ""
        yield f"## {title}"
        rows = [
            [
                name,
                *(f"{compare(archive, way, config.slots, Pool(actors), size).over_ideal:.4f}" for way in WAYS.values()),
            ]
            for name, size in sizes.items()
        ]
        yield from table(["images of a unit", *WAYS], rows)
        ideal = float((archive + 1).sum()) / config.slots / actors
        results = {
            name: compare(archive, tapered, config.slots, pool) for name, pool in disturbed(Pool(actors), ideal).items()
        }
        yield from table(
            ["smaller units at the end", "makespan / ideal", "actors that died"],
            [[name, f"{one.over_ideal:.4f}", str(one.deaths)] for name, one in results.items()],
        )


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["", *(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])]


def figure(config: DispatchConfig, by_pool: dict[str, list[Result]]) -> Image.Image:
    """Time beyond the ideal against the number of slots."""
    drawing, axes = panels(1, 1, row=3.0)
    panel = axes[0][0]
    slots = [actors * config.slots for actors in POOLS]
    for (name, results), colour, marker in zip(by_pool.items(), COLOURS, MARKERS, strict=False):
        beyond = [100 * max(one.over_ideal - 1, 1e-4) for one in results]
        panel.plot(slots, beyond, color=colour, marker=marker, label=name)
    panel.axhline(1, color="#555555", linestyle="--", linewidth=0.9)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xticks(slots, [f"{count:,}" for count in slots])
    panel.set_xlabel(f"solver slots: actors × {config.slots} in flight")
    panel.set_ylabel("makespan beyond ideal (%)")
    return with_legend(drawing, axes)


if __name__ == "__main__":
    sys.exit(run_command(DispatchConfig, simulate_dispatch, "benchmarks.simulate_dispatch"))
