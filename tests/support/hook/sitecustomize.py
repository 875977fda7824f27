"""Faults at exact places of a run, in its own processes: the harness puts this folder on PYTHONPATH.

Python imports this module in every process that it starts: the driver, and each of Ray's workers. Where the folder
FLASHRAY_FAULT is named, the functions of POINTS write down what they are called for, and `faults.json` there may ask
for strikes at them: at the n-th call, counted over all processes, or whenever one is called for a poison image.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("FLASHRAY_FAULT")
# what a point is called for: the images of its arguments
POINTS: dict[str, tuple[str, str, Callable[..., list[str]]]] = {
    "read": ("flashray.pipeline.load", "read_images", lambda places, *_: [place.uri for place in places]),
    "severity": (
        "flashray.pipeline.plan",
        "SeverityActor.estimate",
        lambda _, chunk, __, indices: [chunk["key"][i] for i in indices],
    ),
    "solve": (
        "flashray.pipeline.solve",
        "SolverActor.prepare",
        lambda _, unit, __, ___, indices: [unit["key"][i] for i in indices],
    ),
    "encode": ("flashray.pipeline.encoding", "encode_output", lambda image, *_: [image["uri"]]),
    "write": ("flashray.pipeline.write", "write", lambda table, *_: [row["key"] for row in table["rows"][0].as_py()]),
    "commit": ("flashray.pipeline.write", "write_commit", lambda _, __, rows: [row["key"] for row in rows]),
}


class Finder:
    """Lets the usual finder find, and wraps the points of what it has found."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        points = [point for point, (module, _, _) in POINTS.items() if module == name]
        spec = PathFinder.find_spec(name, path, target) if points else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def and_wrap(module: ModuleType) -> None:
            execute(module)
            for point in points:
                wrap(module, point)

        spec.loader.exec_module = and_wrap  # type: ignore[method-assign]
        return spec


def wrap(module: ModuleType, point: str) -> None:
    *owners, name = POINTS[point][1].split(".")
    owner = functools.reduce(getattr, owners, module)
    whole = getattr(owner, name)

    @functools.wraps(whole)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        reach(point, POINTS[point][2](*arguments))
        result = whole(*arguments, **named)
        Path(f"{FOLDER}/{point}-returned").touch()
        return result

    setattr(owner, name, wrapped)


def reach(point: str, images: list[str]) -> None:
    assert FOLDER is not None
    note(*(f"{point} {image}" for image in images))
    if (Path(FOLDER) / f"slow-{point}").exists():  # so that it can be seen under way
        time.sleep(0.5)
    try:
        faults = json.loads((Path(FOLDER) / "faults.json").read_text())
    except FileNotFoundError:
        return
    faults = [fault for fault in faults if fault["point"] == point]
    call = number(point) if faults else 0
    for fault in faults:
        poisoned = fault["poison"] and any(image.endswith(fault["poison"]) for image in images)
        if poisoned or (not fault["poison"] and fault["call"] == call):
            note(f"strike {fault['victim']}")
            strike(fault)


def strike(fault: dict[str, Any]) -> None:
    assert FOLDER is not None
    deadline = time.monotonic() + 120
    while fault["after"] and not Path(f"{FOLDER}/{fault['after']}-returned").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    if fault["disk"] is not None:
        fill(Path(fault["disk"]) / "balloon")
        if fault["bucket"] is not None:
            fill_up(fault["bucket"])
        return
    victim = os.getpid() if fault["victim"] == "worker" else int((Path(FOLDER) / f"{fault['victim']}.pid").read_text())
    os.kill(victim, getattr(signal, fault["signal"]))
    if fault["victim"] == "driver" and fault["signal"] == "SIGKILL":
        time.sleep(600)  # what comes after the point does not happen: the cluster ends with its driver


def fill(balloon: Path) -> None:
    """Take all that is left of a disk."""
    with open(balloon, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def fill_up(bucket: str, size: int = 64, refusals: int = 32) -> None:
    """Put objects, smaller than any that a run writes, until the server has refused so many in a row.

    Into many folders: the server keeps the names of each in one of several files, which fill one by one.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.session.Session().client("s3", config=Config(read_timeout=5, retries={"total_max_attempts": 1}))
    refused = count = 0
    while refused < refusals:
        count += 1
        try:
            client.put_object(Bucket=bucket, Key=f"filler/{count % refusals}/{os.getpid()}-{count}", Body=bytes(size))
            refused = 0
        except (BotoCoreError, ClientError):
            refused += 1
    note(f"filled {count - refused}")


def number(point: str) -> int:
    """The number of this call, counted over all processes from 1."""
    count = 0
    while True:
        count += 1
        try:
            os.close(os.open(f"{FOLDER}/{point}.{count}", os.O_CREAT | os.O_EXCL))
            return count
        except FileExistsError:
            continue


def note(*lines: str) -> None:
    with open(f"{FOLDER}/log", "a") as file:
        file.write("".join(f"{line}\n" for line in lines))


if FOLDER:
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
