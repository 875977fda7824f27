"""Run an experiment, or what is missing of it: python -m benchmarks EXPERIMENT --photos FOLDER --output FOLDER.

EXPERIMENT is the name of a file in benchmarks/experiments or the path of another one; --scale smoke|small|paper says
how much of it. The same command again computes the cells that are missing and makes the report anew.
"""

from __future__ import annotations

import sys

from benchmarks.command import run_command
from benchmarks.run_experiment import ExperimentConfig, run_experiment

if __name__ == "__main__":
    sys.exit(run_command(ExperimentConfig, run_experiment, "benchmarks", positionals=["experiment"]))
