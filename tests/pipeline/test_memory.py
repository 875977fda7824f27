"""The memory that workers keep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flashray.pipeline.cluster import _environment
from flashray.pipeline.memory import ONE_ARENA

FAULTS = """
import resource, threading, torch
from flashray.pipeline.memory import keep_freed_memory

def allocate(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**24)  # 64 MB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def work():
    keep_freed_memory()
    allocate(30)  # the heap finds its shape
    allocate(10)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_second_thread_keeps_what_it_freed_in_the_workers_environment() -> None:
    """Ray runs tasks in one. A tensor has 16,384 pages; after a while no tensor takes new ones."""
    environment = os.environ | ONE_ARENA | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    first, again = (int(line) for line in done.stdout.split())
    assert first >= 16_384
    assert again < 16_384


def test_the_environment_is_that_of_processes_started_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHRAY_TEST_SET", "mine")
    monkeypatch.delenv("FLASHRAY_TEST_NEW", raising=False)
    with _environment({"FLASHRAY_TEST_NEW": "1", "FLASHRAY_TEST_SET": "2"}):
        assert os.environ["FLASHRAY_TEST_NEW"] == "1"
        assert os.environ["FLASHRAY_TEST_SET"] == "mine"
    assert "FLASHRAY_TEST_NEW" not in os.environ
    assert os.environ["FLASHRAY_TEST_SET"] == "mine"


def test_workers_of_a_cluster_have_it_too() -> None:
    runtime = yaml.safe_load(Path("cluster/runtime_env.yaml").read_text())
    assert runtime["env_vars"].items() >= ONE_ARENA.items()
