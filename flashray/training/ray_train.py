"""A thin wrapper that runs a training loop on Ray Train with sharded Ray Data. Only this file imports Ray Train."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import Tensor

from flashray import storage
from flashray.errors import FlashrayError, ImageError
from flashray.shards.place import Place, read_places
from flashray.training.loop import STATE_FILE, BuildTask, LoopConfig, fit, line
from flashray.training.photo_windows import open_photo, windows
from flashray.training.photos import list_places
from flashray.training.train_config import LaunchConfig, absolute


def launch_on_ray(build: BuildTask, loop: LoopConfig, photos: str, side: int, name: str, config: LaunchConfig) -> Path:
    """Train on Ray Train; returns a local folder with the last checkpoint's state.

    Run again under the same name and storage, it resumes from the last checkpoint, whoever was lost. The state before a
    cool-down is kept in `<storage>/<name>/constant`.
    """
    _connect(config)
    use_gpu = config.device == "cuda" or (config.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    places = [place._asdict() for place in list_places(photos)]
    threads = config.threads or max(1, (os.cpu_count() or 1) // config.workers)
    dataset = ray.data.from_items(places, override_num_blocks=max(4, min(256, len(places) // 50)))
    cut = functools.partial(cut_windows, side=side)
    dataset = dataset.map_batches(cut, batch_size=16, batch_format="pyarrow")
    batches_per_epoch = None
    if config.cache:  # decode and cut once, not once an epoch
        dataset = dataset.materialize()
        # Ray Train gives each worker equally many rows, and leaves out those that remain
        batches_per_epoch = dataset.count() // config.workers // loop.batch_size
    loop, root = replace(loop, go_on=absolute(loop.go_on)), storage.normalise(config.storage)
    constant = storage.join(root, name, "constant", STATE_FILE)
    trainer = TorchTrainer(
        functools.partial(_train_worker, build, loop, threads, batches_per_epoch, constant),
        datasets={"train": dataset},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=name,
            storage_path=root,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    if result.error is not None:
        raise FlashrayError(f"{name}: training failed: {result.error}; the same command resumes it")
    assert result.checkpoint is not None
    return Path(result.checkpoint.to_directory())


def cut_windows(batch: pa.Table, side: int) -> dict[str, Any]:
    """Photos by their places → their square uint8 windows, [n, 3, side, side]; rows of one Parquet file together."""
    places = [Place(row["uri"], row["offset"], row["length"]) for row in batch.to_pylist()]
    cut: list[np.ndarray[Any, Any]] = []
    for _, some in groupby(places, key=lambda place: place.uri):
        for place, data in zip(found := list(some), read_places(found), strict=True):
            if data is None:
                raise ImageError(f"{place} holds no image")
            cut += [window.numpy() for window in windows(open_photo(place, data), side)]
    return {"window": np.stack(cut)}


def _connect(config: LaunchConfig) -> None:
    if not ray.is_initialized():
        if os.environ.get("RAY_ADDRESS"):
            ray.init()
        else:  # Ray Data must be able to read beside the workers, on however few cores
            ray.init(address="local", num_cpus=max(config.workers + 3, os.cpu_count() or 1))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _train_worker(
    build: BuildTask, loop: LoopConfig, threads: int, batches_per_epoch: int | None, constant: str
) -> None:
    """The function that each worker runs; `constant` is the URI that the state before a cool-down gets."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    device = get_device()
    torch.set_num_threads(threads)  # Ray gives a worker of one logical CPU one thread
    torch.manual_seed(loop.seed)
    shard = ray.train.get_dataset_shard("train")

    def batches(epoch: int) -> Iterator[Tensor]:
        stream = shard.iter_torch_batches(
            batch_size=loop.batch_size,
            drop_last=True,
            local_shuffle_buffer_size=8 * loop.batch_size,
            local_shuffle_seed=loop.seed * 1_000_003 + epoch,
            device=device,
        )
        for batch in stream:
            yield batch["window"]

    def report(metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if rank == 0:
                # not print, which Ray Train replaces by one that shows everything twice
                sys.stdout.write(f"{line(context.get_experiment_name(), metrics)}\n")
                save(Path(folder))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"epoch_{metrics['epoch']:05d}")

    def keep(save: Callable[[Path], None]) -> None:
        if rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                save(Path(folder))
                storage.put_bytes(constant, Path(folder, STATE_FILE).read_bytes())

    def clock(seconds: float) -> float:
        if context.get_world_size() == 1:
            return seconds
        agreed = torch.tensor(seconds, dtype=torch.float64, device=device)
        torch.distributed.broadcast(agreed, src=0)
        return agreed.item()

    arguments = {
        "report": report,
        "device": device,
        "rank": rank,
        "workers": context.get_world_size(),
        "wrap": prepare_model,
        "batches_per_epoch": batches_per_epoch,
        "clock": clock,
        "keep": keep,
    }
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        fit(build(), loop, batches, **arguments)
    else:
        with checkpoint.as_directory() as folder:
            fit(build(), loop, batches, resume=Path(folder), **arguments)
