"""The memory that workers keep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flashray.memory import ONE_ARENA
from flashray.pipeline.cluster import _environment

FAULTS = """
import resource, threading, torch
from flashray.memory import keep_freed_memory

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


FOR_A_WHILE = """
import torch
from flashray.memory import freed_memory_kept, keep_freed_memory

def megabytes():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024

def allocate_and_free():
    tensors = [torch.ones(2**24) for _ in range(8)]  # of 64 MB

before = megabytes()
with freed_memory_kept():
    with freed_memory_kept():
        allocate_and_free()
    print(megabytes() - before)
print(megabytes() - before)
keep_freed_memory()
with freed_memory_kept():
    allocate_and_free()
print(megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_is_kept_for_a_while_and_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", FOR_A_WHILE], capture_output=True, text=True, check=True)
    within, after, for_good = (float(number) for number in done.stdout.split())
    assert within > 400
    assert after < 100
    assert for_good > 400


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
