"""One training loop for every model: AdamW, warm-up and cosine decay, clipping, EMA, checkpoints. Plain torch."""

from __future__ import annotations

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from flashray.errors import ConfigError

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    Attributes:
        epochs: passes over the training windows.
        seconds: limit of the training time (0: none); the learning rate decays towards the limit, epochs or seconds,
            that is reached first.
        batch_size: windows of a worker in one step.
        learning_rate: the highest learning rate, after the warm-up.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW.
        clip: limit of the gradient's norm.
        ema_decay: decay of the averaged weights.
        precision: `bf16` autocasts the forward pass.
        validate_every: epochs between validations, each followed by a checkpoint.
        compile: compile the task's parts with torch.compile.
        seed: of initialisation, order, views, and noise.
    """

    epochs: int = 100
    seconds: float = 0.0
    batch_size: int = 64
    learning_rate: float = 3e-4
    warmup_steps: int = 200
    weight_decay: float = 1e-3
    clip: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["bf16", "float32"] = "float32"
    compile: bool = False
    validate_every: int = 1
    seed: int = 0


class Task(nn.Module, ABC):
    """A model with its loss.

    `forward` computes the terms of one batch, so that DDP and torch.compile can wrap the task.
    """

    model: nn.Module  # what is trained, averaged and saved

    @abstractmethod
    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss terms of a batch of uint8 windows; `loss` is minimised, the others are only reported."""

    def parts(self) -> list[nn.Module]:
        """The modules worth compiling."""
        return [self.model]

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on the validation photos, computed with the weights that `model` holds now."""


Report = Callable[[dict[str, Any], Callable[[Path], None]], None]  # (metrics, save state into this folder)


def learning_rate(config: LoopConfig, step: int, progress: float) -> float:
    """Linear warm-up, then cosine decay to 2 % over `progress` 0 … 1."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def fit(
    task: Task,
    config: LoopConfig,
    batches: Callable[[int], Iterable[Tensor]],
    report: Report,
    resume: Path | None = None,
    device: str | torch.device = "cpu",
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    batches_per_epoch: int | None = None,
    rank: int = 0,
    workers: int = 1,
    clock: Callable[[float], float] = lambda seconds: seconds,
) -> dict[str, float]:
    """Train `task.model`; it holds the EMA weights when this returns.

    Args:
        batches: the uint8 windows of an epoch, given its number.
        report: called after each validation with the figures and a function that saves the training state in a folder.
        resume: a folder that the saving function wrote; training continues from the epoch after it.
        wrap: makes the module that computes losses parallel (DDP).
        batches_per_epoch: for the learning rate's progress; measured in the first epoch when unknown.
        rank, workers: this worker's number, and how many there are; each draws different views.
        clock: lets parallel workers agree on the elapsed seconds, so that they stop at the same step.

    Returns:
        The last validation's figures.
    """
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99))
    ema = EMAModel(trained, decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    ema.to(device)
    epoch = step = 0
    spent = 0.0
    if resume is not None:
        state = torch.load(resume / STATE_FILE, map_location=device, weights_only=True)
        task.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        ema.to(device)
        epoch, step, spent = state["epoch"], state["step"], state["seconds"]
    if config.compile:
        for part in task.parts():
            part.compile()
    compute = wrap(task)
    figures: dict[str, float] = {}
    while epoch < config.epochs and not (config.seconds and spent >= config.seconds):
        seed = (config.seed * 1_000_003 + epoch) * 4_099 + rank  # a resumed epoch draws what it would have drawn
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        sums: dict[str, Tensor] = {}
        count, out_of_time, mark = 0, False, time.perf_counter()
        task.model.train()
        for window in batches(epoch):
            planned = config.epochs * (batches_per_epoch or 10**9)
            elapsed = clock(spent + time.perf_counter() - mark) if config.seconds else 0.0
            progress = max(step / planned, elapsed / config.seconds if config.seconds else 0.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, progress)
            with _autocast(config, device):
                terms = compute(window.to(device, non_blocking=True), generator)
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            ema.step(trained)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float()
            step, count = step + 1, count + 1
            if config.seconds and elapsed >= config.seconds:
                out_of_time = True
                break
        if count == 0:
            raise ConfigError(f"batch_size is {config.batch_size}, but a worker has fewer training windows than that")
        batches_per_epoch = batches_per_epoch or count
        spent = clock(spent + time.perf_counter() - mark)
        epoch += 1
        last = out_of_time or epoch == config.epochs or bool(config.seconds and spent >= config.seconds)
        if not last and epoch % config.validate_every:
            continue
        metrics: dict[str, Any] = {f"train/{name}": (total / count).item() for name, total in sums.items()}
        metrics |= {
            "epoch": epoch,
            "step": step,
            "seconds": round(spent, 1),
            "samples": step * config.batch_size * workers,
        }
        with averaged(ema, trained), torch.compiler.set_stance("force_eager"):
            task.eval()
            figures = task.validate()
        metrics |= {f"val/{name}": value for name, value in figures.items()}

        def save(folder: Path, epoch: int = epoch, step: int = step, spent: float = spent) -> None:
            state = {"model": task.model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
            state |= {
                "epoch": epoch,
                "step": step,
                "samples": step * config.batch_size * workers,
                "seconds": spent,
                "config": asdict(config),
            }
            torch.save(state, folder / STATE_FILE)

        report(metrics, save)
        if last:
            break
    ema.copy_to(trained)
    task.eval()
    return figures


def load_averaged(task: Task, folder: Path) -> None:
    """Put the EMA weights of a saved training state into `task.model`."""
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    task.model.load_state_dict(state["model"])
    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    ema = EMAModel(trained)
    ema.load_state_dict(state["ema"])
    ema.copy_to(trained)


def save_half(model: Any, folder: Path) -> None:
    """Save a diffusers model's config and its weights in half precision; the model itself is not changed."""
    weights = {name: value.detach().cpu().half() for name, value in model.state_dict().items()}
    twin = type(model).from_config(model.config).half()
    twin.load_state_dict(weights)
    twin.save_pretrained(folder, safe_serialization=True)


@contextlib.contextmanager
def averaged(ema: EMAModel, parameters: list[nn.Parameter]) -> Iterator[None]:
    """The EMA weights in place of the trained ones, for the duration of a block."""
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def _autocast(config: LoopConfig, device: str | torch.device) -> contextlib.AbstractContextManager[Any]:
    enabled = config.precision == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)
