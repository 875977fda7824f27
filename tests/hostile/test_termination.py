"""SIGTERM ends a process, whatever its threads wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.hostile

STUCK = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from flashray import cli

def work():
    with ThreadPoolExecutor(1) as readers:  # as a thread that reads from a share that does not answer
        readers.submit(threading.Event().wait)
        print("stuck", flush=True)
        time.sleep(600)

cli.main = lambda argv=None: cli.exit_code(work)
cli.command()
"""


def test_row_13_a_read_that_never_ends_does_not_outlive_sigterm() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "the same command goes on from here" in said
    assert time.monotonic() - began < 20  # ten on a machine that is not busy
