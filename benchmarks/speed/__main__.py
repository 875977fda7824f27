"""Measure what this machine makes of flashray: python -m benchmarks.speed [--parts '[engine]'] [--output build] …"""

from __future__ import annotations

import sys

from benchmarks.command import run_command
from benchmarks.speed.bench import bench
from benchmarks.speed.bench_setup import BenchConfig

if __name__ == "__main__":
    sys.exit(run_command(BenchConfig, bench, "benchmarks.speed"))
