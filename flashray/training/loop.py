"""One training loop for every model: AdamW, warm-up, decay or cool-down, clipping, EMA, checkpoints. Plain torch."""

from __future__ import annotations

import io
import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from flashray import storage
from flashray.errors import ConfigError
from flashray.shards.place import Place
from flashray.training.rate import Rate, matrix_rate, operations_a_sample

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    Attributes:
        epochs: passes over the training windows, or over `epoch_steps` batches of them.
        epoch_steps: an epoch ends after so many batches, drawn anew each time, so that validations and checkpoints come
            more often; 0 is a whole pass.
        seconds: stop at this much training time (0: no limit); the learning rate decays towards whichever end is
            nearer.
        batch_size: views in a step of one worker.
        learning_rate: AdamW's, at its highest.
        warmup_steps: steps in which the rate rises from 0 to it.
        decay: `cosine` lowers the learning rate from the first step to the last. `cooldown` keeps it constant, then
            lowers it in a straight line over the last share `cooldown`; the state before that is kept, for `go_on`.
        cooldown: share of the training, 0 … 1.
        go_on: folder or URI with another training's state, whose weights, optimizer and average this one starts from.
        weight_decay: AdamW's.
        clip: largest norm of the gradients; beyond it they are made smaller.
        ema_decay: of the average of the weights over the steps, which is what is saved.
        precision: `bf16` autocasts the forward pass.
        validate_every: epochs between validations, each followed by a checkpoint.
        compile: with torch.compile.
        seed: of initialisation, order, views, and noise.
        progress_every: seconds between two lines of progress with draws a second and the share of the device's matrix
            rate; 0 prints none.
    """

    epochs: int = 100
    epoch_steps: int = 0
    seconds: float = 0.0
    batch_size: int = 64
    learning_rate: float = 3e-4
    warmup_steps: int = 200
    decay: Literal["cosine", "cooldown"] = "cosine"
    cooldown: float = 0.2
    go_on: str = ""
    weight_decay: float = 1e-3
    clip: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["bf16", "float32"] = "float32"
    compile: bool = False
    validate_every: int = 1
    seed: int = 0
    progress_every: float = field(default=20.0, repr=False)  # not in the repr, which names the checkpoints

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "validate_every": 1, "epoch_steps": 0, "seconds": 0, "warmup_steps": 0}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ConfigError(f"{name} is {getattr(self, name)}; give at least {value}")
        if not 0 < self.cooldown <= 1:
            raise ConfigError(f"cooldown is {self.cooldown}; give the share of the training that it takes, up to 1")

    def cools(self, progress: float) -> bool:
        """Whether the constant rate has ended at this progress, 0 … 1."""
        return self.decay == "cooldown" and progress > 1 - self.cooldown


class Task(nn.Module, ABC):
    """A model with its loss, computed by `forward`, so that DDP and torch.compile can wrap the task."""

    model: nn.Module  # what is trained, averaged and saved
    companion: nn.Module | None  # trained beside it and neither averaged nor saved as the model
    draws: int = 1  # how often a step trains on each sample

    def __init__(self) -> None:
        super().__init__()
        self.companion = None

    @abstractmethod
    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss terms of a batch of uint8 windows, or of what `prepare` made; `loss` is minimised, the rest reported."""

    def prepare(
        self, load: Callable[[], Tensor], paths: Sequence[Path | Place], storage: Path, device: str | torch.device
    ) -> Tensor:
        """What passes go over where training is local: the uint8 windows that `load` gives, or something made of them.

        They are [n, 3, side, side], of all photos; `storage` is for what is worth keeping for the next training.
        """
        return load()

    def parts(self) -> list[nn.Module]:
        """The modules worth compiling."""
        return [self.model]

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Figures on the validation photos, with the weights that `model` holds now."""


BuildTask = Callable[[], Task]  # must be picklable for Ray: a functools.partial over a module's function
Report = Callable[[dict[str, Any], Callable[[Path], None]], None]  # (metrics, save state into this folder)


def line(name: str, metrics: dict[str, Any]) -> str:
    """One line of progress."""
    figures = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items())
    return f"{name}: {' '.join(figures)}"


def learning_rate(config: LoopConfig, step: int, progress: float) -> float:
    """Linear warm-up, then the decay to 2 % over `progress` 0 … 1, along a cosine or over the cool-down alone."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = 1 - min(1.0, progress)
    height = 0.5 * (1 - math.cos(math.pi * left)) if config.decay == "cosine" else min(1.0, left / config.cooldown)
    return config.learning_rate * warm * (0.02 + 0.98 * height)


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
    keep: Callable[[Callable[[Path], None]], None] = lambda save: None,
    say: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Train `task.model`, which then holds the EMA weights; returns the last validation's figures.

    Args:
        batches: the uint8 windows of an epoch, given its number.
        report: called after each validation with the figures and a function that saves the training state in a folder.
        resume: a folder that the saving function wrote; training continues from the epoch after it.
        wrap: makes the module that computes losses parallel (DDP).
        batches_per_epoch: for the learning rate's progress; measured in the first epoch when unknown, and then kept in
            the state.
        rank, workers: this worker's number, and how many there are; each draws different views.
        clock: makes parallel workers agree on the seconds spent, so that they stop at the same step.
        keep: called once, before a cool-down that this call begins, with a function that saves the state.
        say: called with each line of progress, where one worker trains.
    """
    task.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    beside = list(task.companion.parameters()) if task.companion is not None else []
    optimizer = torch.optim.AdamW(
        [*trained, *beside],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.99),
        fused=torch.device(device).type == "cuda" or None,
    )
    ema = EMAModel(trained, decay=config.ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    epoch, step, spent = 0, 0, 0.0
    if resume is None and config.go_on:
        _load_state(config.go_on, config, task, optimizer, ema)
    elif resume is not None:
        state = _load_state(str(resume), config, task, optimizer, ema)
        epoch, step, spent = state["epoch"], state["step"], state["seconds"]
        # older states do not say
        batches_per_epoch = batches_per_epoch or state.get("batches_per_epoch") or step // max(1, epoch)
    ema.to(device)
    if config.epoch_steps and batches_per_epoch:
        batches_per_epoch = min(batches_per_epoch, config.epoch_steps)
    if config.compile:
        for part in task.parts():
            part.compile()
    compute = wrap(task)
    figures: dict[str, float] = {}
    rate: Rate | None = None
    # of a state that another process left, the rate of its last step tells
    cooling = config.decay == "cooldown" and optimizer.param_groups[0]["lr"] < learning_rate(config, step - 1, 0.0)

    def progress_made() -> dict[str, Any]:
        return {"epoch": epoch, "step": step, "seconds": spent, "samples": step * config.batch_size * workers}

    def save(folder: Path) -> None:
        state = {"model": task.model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        if task.companion is not None:
            state["companion"] = task.companion.state_dict()
        state |= {"batches_per_epoch": batches_per_epoch, "config": asdict(config), "figures": figures}
        torch.save(state | progress_made(), folder / STATE_FILE)

    while epoch < config.epochs and not (config.seconds and spent >= config.seconds):
        seed = (config.seed * 1_000_003 + epoch) * 4_099 + rank  # a resumed epoch draws what it would have drawn
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}  # a term may be in some batches only
        count, out_of_time, mark = 0, False, time.perf_counter()
        task.model.train()
        for window in itertools.islice(batches(epoch), config.epoch_steps or None):
            planned = config.epochs * (batches_per_epoch or 10**9)
            elapsed = clock(spent + time.perf_counter() - mark) if config.seconds else 0.0
            progress = max(step / planned, elapsed / config.seconds if config.seconds else 0.0)
            if config.cools(progress):
                if step and not cooling:
                    keep(save)
                cooling = True
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, progress)
            window = window.to(device, non_blocking=True)
            if rate is None:
                rate = _rate(task, config, window, device) if say and workers == 1 else Rate()
            with _autocast(config, device):
                terms = compute(window, generator)
            optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            nn.utils.clip_grad_norm_(trained, config.clip)
            if beside:
                nn.utils.clip_grad_norm_(beside, config.clip)
            optimizer.step()
            ema.step(trained)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float()
                counts[name] = counts.get(name, 0) + 1
            step, count = step + 1, count + 1
            due = rate.add(len(window))
            if due is not None and say is not None:
                loss = terms["loss"].item()
                say(f"step {step} loss {loss:.4g} " + " ".join(f"{name} {value:.3g}" for name, value in due.items()))
            if out_of_time := bool(config.seconds) and elapsed >= config.seconds:
                break
        if count == 0:
            raise ConfigError(f"batch_size is {config.batch_size}, but a worker has fewer training windows than that")
        batches_per_epoch = batches_per_epoch or count
        spent = clock(spent + time.perf_counter() - mark)
        epoch += 1
        last = out_of_time or epoch == config.epochs or bool(config.seconds and spent >= config.seconds)
        if not last and epoch % config.validate_every:
            continue
        metrics: dict[str, Any] = {f"train/{name}": (total / counts[name]).item() for name, total in sums.items()}
        metrics |= progress_made() | {"seconds": round(spent, 1)}
        ema.store(trained)
        ema.copy_to(trained)
        task.eval()
        with torch.compiler.set_stance("force_eager"):
            figures = task.validate()
        ema.restore(trained)
        report(metrics | {f"val/{name}": value for name, value in figures.items()}, save)
        if last:
            break
    ema.copy_to(trained)
    task.eval()
    return figures


def _load_state(
    folder: str, config: LoopConfig, task: Task, optimizer: torch.optim.Optimizer, ema: EMAModel
) -> dict[str, Any]:
    """Put a saved training state, of a folder or URI, into its parts; returns it. Settings stay the configuration's."""
    data = io.BytesIO(storage.read_bytes(storage.join(folder, STATE_FILE)))
    state: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    task.model.load_state_dict(state["model"])
    if task.companion is not None:
        task.companion.load_state_dict(state["companion"])
    optimizer.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        group["weight_decay"] = config.weight_decay
    ema.load_state_dict(state["ema"])
    ema.decay = config.ema_decay
    return state


def load_averaged(task: Task, folder: Path) -> dict[str, float]:
    """Put the averaged weights of a saved training state into `task.model`; returns their validation's figures."""
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    task.model.load_state_dict(state["model"])
    trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    ema = EMAModel(trained)
    ema.load_state_dict(state["ema"])
    ema.copy_to(trained)
    return dict(state.get("figures", {}))  # older states have none


def save_half(model: Any, folder: Path) -> None:
    """Save a diffusers model's config and its weights in half precision; the model itself is not changed."""
    weights = {name: value.detach().cpu().half() for name, value in model.state_dict().items()}
    twin = type(model).from_config(model.config).half()
    twin.load_state_dict(weights)
    twin.register_to_config(_name_or_path="")  # diffusers notes the folder that the first weights came from
    twin.save_pretrained(folder, safe_serialization=True)


def _rate(task: Task, config: LoopConfig, batch: Tensor, device: str | torch.device) -> Rate:
    """For this task's samples, with the operations of one and the device's matrix rate measured."""
    if not config.progress_every:
        return Rate()
    with _autocast(config, device), torch.compiler.set_stance("force_eager"):
        operations = operations_a_sample(task, batch)
    task.zero_grad(set_to_none=True)
    peak = matrix_rate(device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    return Rate(config.progress_every, task.draws, operations, peak)


def _autocast(config: LoopConfig, device: str | torch.device) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16")
