"""`make bench`: what this machine makes of the engine, the recipes, the pipeline and the packing, in one JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.bench_parts import PARTS, Row
from benchmarks.speed.bench_setup import BenchConfig, Part, SpeedSetup
from flashray.errors import ConfigError
from flashray.report.markdown import to_markdown


def bench(config: BenchConfig) -> None:
    """Measure the parts, write bench.json (flat numbers) and bench.md (tables), and print the tables."""
    if not config.recipes:
        raise ConfigError("bench: name at least one recipe")
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    numbers, tables = (_read(folder / name) for name in ("bench.json", "bench_tables.json"))
    setup = SpeedSetup(config)
    for part in config.parts:
        found, rows = PARTS[part](setup)
        numbers |= found
        tables[part] = rows
        (folder / "bench.json").write_text(json.dumps(numbers, indent=2) + "\n")
        (folder / "bench_tables.json").write_text(json.dumps(tables, indent=2) + "\n")
        print("\n".join(_table(part, rows)), flush=True)
    (folder / "bench.md").write_text("\n".join(page(numbers, tables, setup.machine)) + "\n")
    print(f"{folder / 'bench.json'}\n{folder / 'bench.md'}")


def page(numbers: Mapping[str, float], tables: Mapping[str, list[Row]], machine: str) -> Iterator[str]:
    """The lines of bench.md."""
    yield "# Speed"
    yield ""
    yield f"Machine: {machine}."
    yield ""
    yield to_markdown([{"figure": name, "value": _shown(value)} for name, value in numbers.items()])
    for part in PARTS:
        if part in tables:
            yield from _table(part, tables[part])


def _table(part: Part, rows: list[Row]) -> Iterator[str]:
    yield f"## {part}: {(PARTS[part].__doc__ or part).splitlines()[0]}"
    yield ""
    yield to_markdown([{name: _shown(value) for name, value in row.items()} for row in rows])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
