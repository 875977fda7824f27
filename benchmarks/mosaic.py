"""Photos of many megapixels, put together of small ones: they have the size of phone photos and are none.

    python -m benchmarks.mosaic FOLDER mosaic.jpg --megapixels 50                  writes one
    python -m benchmarks.mosaic FOLDER mosaic.jpg --megapixels 50 --restore        and restores it in Python
    python -m benchmarks.mosaic FOLDER mosaic.jpg --megapixels 50 --job OUTPUT     and by the job: flashray restore

Prints seconds and the peak of resident anonymous memory: of this process, or of each kind of process of the job,
sampled four times a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import flashray
from flashray.images import to_uint8
from flashray.metrics import psnr
from flashray.training.photo_windows import list_photos, load_fitted

SIDE = 256  # pixels of a photo in the mosaic
NOISE = 12  # grey levels


def write_mosaic(folder: Path, target: Path, megapixels: float) -> torch.Tensor:
    """A JPEG of 4 : 3 with noise; returns the clean mosaic, [3, H, W] in [-1, 1]."""
    down = round((megapixels * 1e6 * 3 / 4) ** 0.5 / SIDE)
    across = round(megapixels * 1e6 / (down * SIDE * SIDE))
    paths = list_photos(folder)
    x = load_fitted([paths[n % len(paths)] for n in range(down * across)], SIDE)
    mosaic = x.unflatten(0, (down, across)).permute(2, 0, 3, 1, 4).reshape(3, down * SIDE, across * SIDE)
    noise = np.random.default_rng(0).normal(0, NOISE, (down * SIDE, across * SIDE, 3))
    pixels = (to_uint8(mosaic).permute(1, 2, 0).numpy() + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(target, quality=95, subsampling=0)
    return mosaic


def own_memory(process: int | str) -> tuple[str, int]:
    """(name, bytes of resident anonymous memory) of a process; nothing of one that has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return "", 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        name = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        name = ""
    return os.path.basename(name), int(fields.get("RssAnon", "0 kB").split()[0]) * 1024


def descendants(root: int) -> list[int]:
    """The process and all that it and its children have started."""
    parent_of = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent_of[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = [root]
    for one in found:
        found += [child for child, parent in parent_of.items() if parent == one]
    return found


def by_the_job(target: Path, output: str) -> None:
    """Seconds of `flashray restore`, and the peaks of its processes' memory by their names."""
    began, peaks, most = time.monotonic(), defaultdict[str, int](int), 0
    command = [sys.executable, "-m", "flashray", "restore", str(target), output, "--tracking.enabled", "false"]
    job = subprocess.Popen([*command, "--resources.precision", "float32"])
    while job.poll() is None:
        sizes = [own_memory(process) for process in descendants(job.pid)]
        most = max(most, sum(size for _, size in sizes))
        for name, size in sizes:
            peaks[name] = max(peaks[name], size)
        time.sleep(0.25)
    print(f"exit code {job.returncode}, {time.monotonic() - began:.1f} s, all processes at once {most / 1e9:.2f} GB")
    for name, size in sorted(peaks.items(), key=lambda one: -one[1])[:6]:
        print(f"  {size / 1e9:.2f} GB  {name}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--megapixels", type=float, default=50)
    parser.add_argument("--restore", action="store_true")
    parser.add_argument("--job")
    given = parser.parse_args()
    mosaic = write_mosaic(given.folder, given.target, given.megapixels)
    _, height, width = mosaic.shape
    print(f"{width} x {height}, {width * height / 1e6:.1f} megapixels, {given.target.stat().st_size / 1e6:.1f} MB")
    if given.job:
        del mosaic
        by_the_job(given.target, given.job)
    if given.restore:
        restorer = flashray.load("photo", device="cpu", precision="float32")
        before, began = own_memory("self")[1], time.perf_counter()
        restored = restorer(given.target)
        seconds = time.perf_counter() - began
        (image,) = restored.images
        assert image is not None, restored.errors
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
        print(f"{seconds:.1f} s, {seconds / (width * height / 1e6):.2f} s a megapixel, NFE {restored.nfe[0]:.2f}")
        print(f"peak {peak / 1e9:.2f} GB, of which {before / 1e9:.2f} GB were there before (the clean mosaic, models)")
        print(f"PSNR {psnr(image[None], mosaic[None]).item():.2f} dB")


if __name__ == "__main__":
    main()
