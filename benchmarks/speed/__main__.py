"""Measure what this machine makes of flashray: python -m benchmarks.speed [--parts '[engine]'] [--output build] …"""

from __future__ import annotations

import sys
from pathlib import Path

from jsonargparse import ArgumentParser

from benchmarks.speed.bench import bench
from benchmarks.speed.bench_setup import BenchConfig
from flashray.cli import exit_code

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ["gaussian_blur_flash_latent_dps", "gaussian_blur_flash_proximal"]


def main() -> int:
    """Exit code 0 done, 1 a part failed, 2 bad arguments."""
    parser = ArgumentParser(prog="bench", description="Measure what this machine makes of flashray.")
    parser.add_class_arguments(BenchConfig)
    recipes = [str(ROOT / "flashray" / "recipes" / f"{name}.yaml") for name in RECIPES]
    parser.set_defaults(recipes=recipes, job=str(ROOT / "jobs" / "reconstruct.py"))
    config = BenchConfig(**vars(parser.instantiate(parser.parse_args())))
    return exit_code(lambda: bench(config))


if __name__ == "__main__":
    sys.exit(main())
