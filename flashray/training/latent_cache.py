"""Latents of many views of each photo, encoded once and kept on disk in half precision."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flashray.prior import LatentPrior
from flashray.shards.place import Place
from flashray.training.photo_windows import pixels_at, random_views

_BATCH = 64


def cached_latents(
    prior: LatentPrior,
    load: Callable[[], Tensor],
    paths: Sequence[Path | Place],
    views: int,
    storage: Path,
    device: str | torch.device,
) -> Tensor:
    """[views · n, C, h, w] half-precision latents of random views of n windows, mapped from a file.

    Its name tells the prior's encoder and latent scaling, the photos' paths and the views: trainings share it. `load`
    reads the uint8 windows where the file is missing; each view of a window has its own crop, zoom and mirroring.
    """
    path = storage / f"latents-{_key(prior, paths, views)}.npy"
    if not path.is_file():
        storage.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=storage, prefix=".latents-") as fresh:
            _encode(prior, load(), views, Path(fresh, path.name), device)
            Path(fresh, path.name).replace(path)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


@torch.no_grad()
def _encode(prior: LatentPrior, window_NCHW: Tensor, views: int, path: Path, device: str | torch.device) -> None:
    """Write the latents of `views` passes over the windows, in shuffled order, as one .npy file."""
    prior.to(device)
    prior.autoencoder.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    store: np.memmap | None = None
    done, start = 0, time.perf_counter()
    for _ in range(views):
        for index in torch.randperm(len(window_NCHW), generator=generator).split(_BATCH):
            x = random_views(window_NCHW[index].to(device), prior.sample_size, generator)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                z = prior.encode(x.contiguous(memory_format=torch.channels_last)).half().cpu().numpy()
            if store is None:
                shape = (views * len(window_NCHW), *z.shape[1:])
                store = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
            store[done : done + len(z)] = z
            done += len(z)
    if store is not None:
        store.flush()
    print(f"encoded {done} views in {time.perf_counter() - start:.0f} seconds", flush=True)


def _key(prior: LatentPrior, paths: Sequence[Path | Place], views: int) -> str:
    """Ten digits of what decides the latents."""
    scaling = (prior.scale.flatten().tolist(), prior.shift.flatten().tolist())
    digest = hashlib.sha256(repr([views, prior.sample_size, scaling, [str(path) for path in paths]]).encode())
    for name, value in sorted(prior.autoencoder.encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:10]


def random_crops(z_BCHW: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A square of `side` positions at a random place in each latent, [B, C, side, side]."""
    batch, _, height, width = z_BCHW.shape
    if side >= min(height, width):
        return z_BCHW
    device = z_BCHW.device
    top_B = torch.randint(0, height - side + 1, (batch, 1, 1), generator=generator).to(device)
    left_B = torch.randint(0, width - side + 1, (batch, 1, 1), generator=generator).to(device)
    row = torch.arange(side, device=device)
    return pixels_at(z_BCHW, top_B + row[:, None], left_B + row)
