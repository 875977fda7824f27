"""What the options of a device are worth: a recipe's seconds and quality with each, beside the prior as it is saved."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.speed.timing import precision
from benchmarks.stopwatch import seconds_of
from flashray.errors import ConfigError
from flashray.prior import LatentPrior

MOST_PSNR, MOST_LPIPS = 0.05, 0.001  # an option may change a recipe's mean by so much
Option = Callable[[LatentPrior], AbstractContextManager[Any]]


@contextmanager
def channels_last(prior: LatentPrior) -> Iterator[None]:
    """Weights, and with them activations, in the layout [batch, height, width, channel]."""
    networks = (prior.autoencoder, prior.denoiser)
    for network in networks:
        network.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for network in networks:
            network.to(memory_format=torch.contiguous_format)


@contextmanager
def checkpointing(prior: LatentPrior) -> Iterator[None]:
    """The decoder's activations are computed again, a block at a time, for the gradient: less memory, more time."""
    blocks = prior.autoencoder.decoder.up_blocks  # not every autoencoder of diffusers' can do it by itself
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def threads(count: int, prior: LatentPrior) -> Iterator[None]:
    """So many threads of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Compiled:
    """torch.compile of denoiser and decoder, made once and put in for the length of a block."""

    def __init__(self, mode: str | None = None) -> None:
        self.mode = mode
        self.made: dict[str, Any] = {}

    @contextmanager
    def __call__(self, prior: LatentPrior) -> Iterator[None]:
        for name in ("epsilon", "decode"):
            if name not in self.made:
                self.made[name] = torch.compile(getattr(prior, name), mode=self.mode, dynamic=False)
            setattr(prior, name, self.made[name])
        try:
            yield
        finally:
            for name in ("epsilon", "decode"):
                delattr(prior, name)


def both(*options: Option) -> Option:
    """One option inside the other."""

    @contextmanager
    def together(prior: LatentPrior) -> Iterator[None]:
        with ExitStack() as stack:
            for option in options:
                stack.enter_context(option(prior))
            yield

    return together


def make_options(names: Sequence[str]) -> dict[str, Option]:
    """The options by name, `float32` first: what the others are compared with.

    Raises:
        ConfigError: if one is unknown.
    """
    bf16: Option = partial(precision, name="bf16")
    known: dict[str, Option] = {
        "float32": lambda prior: nullcontext(),
        "bf16": bf16,
        "channels_last": channels_last,
        "channels_last bf16": both(channels_last, bf16),
        "compile bf16": both(bf16, Compiled()),
        "CUDA graphs bf16": both(bf16, Compiled("reduce-overhead")),
        "checkpointing bf16": both(bf16, checkpointing),
        "one thread bf16": both(bf16, partial(threads, 1)),
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"bench: no option is called {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: option for name, option in known.items() if name in names or name == "float32"}


def compare(
    options: dict[str, Option],
    prior: LatentPrior,
    update: Callable[[], object],
    scores: Callable[[], dict[str, float]],
    repeats: int,
) -> list[dict[str, Any]]:
    """A row an option: seconds of `update` (alternating), mean scores, and whether it is worth keeping.

    `first_seconds` is the first update's, with what it took to compile. Kept is what is at least as fast as float32 and
    moves the mean PSNR and LPIPS by no more than `MOST_PSNR` and `MOST_LPIPS`.
    """
    device = prior.device
    seconds: dict[str, list[float]] = {name: [] for name in options}
    peak: dict[str, float] = {}
    for _ in range(repeats + 1):
        for name, option in options.items():
            with option(prior):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                seconds[name].append(seconds_of(update, device))
                if device.type == "cuda":
                    peak[name] = torch.cuda.max_memory_allocated(device) / 1e9
    found = {}
    for name, option in options.items():
        with option(prior):
            found[name] = scores()
    plain = next(iter(options))
    base, rows = statistics.median(seconds[plain][1:]), []
    for name in options:
        took = statistics.median(seconds[name][1:])
        change = {metric: value - found[plain][metric] for metric, value in found[name].items()}
        same = abs(change["psnr"]) <= MOST_PSNR and abs(change.get("lpips", 0.0)) <= MOST_LPIPS
        rows.append(
            {
                "option": name,
                "first_seconds": seconds[name][0],
                "update_seconds": took,
                "speed_up": base / took,
                **({"peak_gb": peak[name]} if peak else {}),
                **found[name],
                "psnr_change": change["psnr"],
                "lpips_change": change.get("lpips"),
                "kept": "yes" if same and took <= base else "no",
            }
        )
    return rows
