"""Run an experiment, or what is missing of it: python -m benchmarks EXPERIMENT --photos FOLDER --output FOLDER.

EXPERIMENT is the name of a file in benchmarks/experiments or the path of another one; --scale smoke|small|paper says
how much of it. The same command again computes the cells that are missing and makes the report anew.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from benchmarks.run_experiment import BenchmarkConfig, benchmark
from flashray.cli import exit_code

EXPERIMENTS = Path(__file__).resolve().parent / "experiments"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 1 cells failed or the run stopped, 2 bad arguments or configuration."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = ArgumentParser(prog="benchmark", description="Run an experiment, or what is missing of it.")
    known = ", ".join(sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
    parser.add_argument("experiment", type=str, help=f"one of {known}, or a YAML file")
    parser.add_class_arguments(BenchmarkConfig, skip={"experiment"})
    config = BenchmarkConfig(**vars(parser.instantiate(parser.parse_args(argv))))
    return exit_code(lambda: benchmark(config, EXPERIMENTS))


if __name__ == "__main__":
    sys.exit(main())
