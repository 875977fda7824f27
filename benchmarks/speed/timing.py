"""What the engine makes of a machine: every ratio measured side by side in one run, alternating. No Ray."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.reference_loop import latent_dps_loop
from benchmarks.stopwatch import seconds_of, synchronise
from flashray.active_image import Job, make_problem
from flashray.degradations import Degradation
from flashray.engine import advance, solve
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.solvers import Solver, make_solver
from flashray.solvers.solver import Problem, Step, reverse_step


def alternating(works: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each, all of them once a round, after one round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            took = seconds_of(work, device)
            if repeat:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def precision(prior: LatentPrior, name: str) -> Iterator[None]:
    """The prior in this precision for the length of a block."""
    before, prior.bf16 = prior.bf16, name == "bf16"
    try:
        yield
    finally:
        prior.bf16 = before


def engine_over_loop(
    prior: LatentPrior,
    degradation: Degradation,
    schedule: NoiseSchedule,
    jobs: Sequence[Job],
    slots: Sequence[int],
    precisions: Sequence[str] = ("float32", "bf16"),
    repeats: int = 3,
    dc_step: float = 1.0,
) -> list[dict[str, float | str]]:
    """Latent-DPS in the engine against the plain loop, the same images and steps: a row a batch size and precision.

    The loop takes one image of each round, the engine a whole batch; both are stated per NFE of one image.
    """
    solver = make_solver("latent_dps", {"dc_step": dc_step})
    works: dict[str, Callable[[], object]] = {}
    nfe: dict[str, int] = {}

    def loop() -> None:
        with precision(prior, "float32"):
            latent_dps_loop(prior, degradation, schedule, jobs[0], dc_step)

    works["loop"], nfe["loop"] = loop, jobs[0].start_step
    for kind in precisions:
        for count in slots:

            def engine(kind: str = kind, count: int = count) -> None:
                with precision(prior, kind):
                    for _ in solve(prior, degradation, solver, schedule, _filled(jobs, count), count):
                        pass

            name = f"{kind} {count}"
            works[name], nfe[name] = engine, sum(job.start_step for job in _filled(jobs, count))
    took = alternating(works, prior.device, repeats)
    each = {name: seconds / nfe[name] for name, seconds in took.items()}
    return [
        {
            "precision": name.split()[0],
            "slots": int(name.split()[1]),
            "loop_seconds_per_nfe": each["loop"],
            "engine_seconds_per_nfe": each[name],
            "ratio": each["loop"] / each[name],
        }
        for name in works
        if name != "loop"
    ]


def _filled(jobs: Sequence[Job], count: int) -> list[Job]:
    """The first `count` of the jobs, over and over."""
    return [dataclasses.replace(jobs[n % len(jobs)], key=str(n)) for n in range(count)]


@dataclass
class SlotUtilization:
    """The share of slots that did useful work; give it to `solve` as `on_step`."""

    slots: int
    useful: int = 0
    steps: int = 0

    def __call__(self, count: int) -> None:
        self.useful, self.steps = self.useful + count, self.steps + 1

    @property
    def share(self) -> float:
        """Useful slot-steps over all slot-steps."""
        return self.useful / (self.slots * self.steps) if self.steps else 1.0


class _Nothing:
    """A rule that only counts: slot_utilization depends on start steps and slots alone."""

    name: ClassVar[str] = "nothing"
    needs_gradient: ClassVar[bool] = False
    needs_adjoint: ClassVar[bool] = False

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        return reverse_step(step, step.noise(0))


def slot_utilization(
    units: Sequence[Sequence[int]],
    slots: int,
    jobs: Callable[[Sequence[int]], list[Job]],
    prior: LatentPrior,
    degradation: Degradation,
    schedule: NoiseSchedule,
) -> float:
    """The share of useful slot-steps when the engine solves these units (start steps each), one after another.

    The engine takes every step of every image, with the identity in place of the denoiser.
    """
    total = SlotUtilization(slots)
    prior.epsilon = lambda z, t: z  # type: ignore[method-assign, assignment]
    try:
        for unit in units:
            for _ in solve(prior, degradation, _Nothing(), schedule, jobs(unit), slots, on_step=total):
                pass
    finally:
        del prior.epsilon
    return total.share


@dataclass
class Stopwatch:
    """Seconds spent in named functions, forward and backward, where each call waits for the device.

    The backward part of a function runs from the moment the gradient of its result is known to the moment that of its
    argument is.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, since: float) -> None:
        synchronise(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - since

    def wrap(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(x: Tensor, *more: object) -> Tensor:
            synchronise(self.device)
            started = time.perf_counter()
            if x.requires_grad and not x.is_leaf:
                x = x.clone()  # a tensor of its own, whose gradient is this call's alone
            result = function(x, *more)
            self.add(name, started)
            if result.requires_grad:
                begun: list[float] = []

                def begin(gradient: Tensor) -> None:
                    synchronise(self.device)
                    begun.append(time.perf_counter())

                result.register_hook(begin)
                x.register_hook(lambda gradient: self.add(name, begun.pop()) if begun else None)
            return result

        return timed


def components(
    prior: LatentPrior,
    degradation: Degradation,
    solver: Solver,
    schedule: NoiseSchedule,
    jobs: Sequence[Job],
    steps: int,
) -> dict[str, float]:
    """Seconds per NFE of one image in denoiser, decoder, encoder, operator and the rest, over `steps` batched steps."""
    watch = Stopwatch(prior.device)
    seed_B, problem = make_problem(prior, degradation, list(jobs))
    epsilon, measure = prior.epsilon, problem.operator.A
    timed = dataclasses.replace(
        problem, encode=watch.wrap("encoder", problem.encode), decode=watch.wrap("decoder", problem.decode)
    )
    z = torch.stack([job.z_start for job in jobs]).to(prior.device)
    index_B = torch.full((len(jobs),), len(schedule) - 1)
    advance(prior, solver, schedule, problem, z, index_B, seed_B)  # warm up
    try:
        prior.epsilon = watch.wrap("denoiser", epsilon)  # type: ignore[method-assign]
        object.__setattr__(problem.operator, "A", watch.wrap("operator", measure))
        total = seconds_of(
            lambda: [advance(prior, solver, schedule, timed, z, index_B - n, seed_B) for n in range(steps)],
            prior.device,
        )
    finally:
        del prior.epsilon
        object.__delattr__(problem.operator, "A")
    found = {name: seconds / (steps * len(jobs)) for name, seconds in watch.seconds.items()}
    return {**found, "other": total / (steps * len(jobs)) - sum(found.values())}


def throughput(
    prior: LatentPrior,
    degradation: Degradation,
    schedule: NoiseSchedule,
    jobs: Sequence[Job],
    slots: Sequence[int],
    precisions: Sequence[str] = ("float32", "bf16"),
    repeats: int = 3,
    dc_step: float = 1.0,
) -> list[dict[str, float | str]]:
    """NFE a second and peak memory in GB (10⁹ bytes; nan on a CPU) of Latent-DPS: a row a precision and batch size.

    A batch size that does not fit into memory ends its precision's rows.
    """
    solver = make_solver("latent_dps", {"dc_step": dc_step})
    rows: list[dict[str, float | str]] = []
    on_gpu = prior.device.type == "cuda"
    for kind in precisions:
        for count in slots:
            batch = _filled(jobs, count)

            def work(kind: str = kind, batch: list[Job] = batch) -> None:
                seed_B, problem = make_problem(prior, degradation, batch)
                z = torch.stack([job.z_start for job in batch]).to(prior.device)
                with precision(prior, kind):
                    for i in reversed(range(batch[0].start_step)):
                        z = advance(prior, solver, schedule, problem, z, torch.full((len(batch),), i), seed_B)

            if on_gpu:
                torch.cuda.reset_peak_memory_stats(prior.device)
            try:
                took = alternating({"engine": work}, prior.device, repeats)["engine"]
            except torch.OutOfMemoryError:
                break
            peak = torch.cuda.max_memory_allocated(prior.device) / 1e9 if on_gpu else float("nan")
            nfe = count * batch[0].start_step
            rows.append({"precision": kind, "slots": count, "nfe_per_second": nfe / took, "peak_gb": peak})
    return rows


def flops_fraction(
    prior: LatentPrior,
    degradation: Degradation,
    solver: Solver,
    schedule: NoiseSchedule,
    jobs: Sequence[Job],
    repeats: int = 5,
) -> dict[str, float]:
    """FLOP/s that one batched update reaches, against those of a large convolution in the same precision."""
    device = prior.device
    seed_B, problem = make_problem(prior, degradation, list(jobs))
    z = torch.stack([job.z_start for job in jobs]).to(device)
    index_B = torch.full((len(jobs),), len(schedule) - 1)

    def update() -> None:
        advance(prior, solver, schedule, problem, z, index_B, seed_B)

    # 256 → 256 channels, 3×3, on 64×64 points: what convolutions of this machine can do
    x = torch.randn(8, 256, 64, 64, device=device)
    convolution = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False).to(device)

    def large() -> None:
        with torch.no_grad(), prior.autocast():
            convolution(x)

    epsilon = prior.epsilon
    # the counter takes no leaf tensors
    prior.epsilon = lambda z, t: epsilon(z.clone(), t)  # type: ignore[method-assign, assignment]
    try:
        with FlopCounterMode(display=False) as counter:
            update()
    finally:
        del prior.epsilon
    flops = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        large()
    took = alternating({"update": update, "large": large}, device, repeats)
    reached, possible = flops / took["update"], counter.get_total_flops() / took["large"]
    return {
        "gflop_per_nfe": flops / len(jobs) / 1e9,
        "update_gflops": reached / 1e9,
        "convolution_gflops": possible / 1e9,
        "fraction": reached / possible,
    }


def recipe_over_full_loop(
    prior: LatentPrior,
    degradation: Degradation,
    solver: Solver,
    chain: NoiseSchedule,
    jobs: Sequence[Job],
    eta: float,
    slots: int,
    kind: str,
    loop_steps: int,
    dc_step: float = 1.0,
    repeats: int = 3,
) -> dict[str, float]:
    """Seconds an image of a recipe in the engine (decoding included) and of the full chain in the plain loop.

    The loop runs `loop_steps` updates of one image from the start, and the whole chain is stated as that many times
    longer: every step costs the same.
    """
    slow = dataclasses.replace(jobs[0], start_step=loop_steps)

    def recipe() -> None:
        with precision(prior, kind):
            for _ in solve(prior, degradation, solver, chain, jobs, slots, eta):
                pass

    def loop() -> None:
        with precision(prior, "float32"):
            latent_dps_loop(prior, degradation, prior.schedule, slow, dc_step)

    took = alternating({"recipe": recipe, "loop": loop}, prior.device, repeats)
    recipe_seconds, loop_seconds = took["recipe"] / len(jobs), took["loop"] / loop_steps * len(prior.schedule)
    return {
        "recipe_seconds": recipe_seconds,
        "loop_seconds": loop_seconds,
        "ratio": recipe_seconds / loop_seconds,
        "nfe": statistics.fmean(job.start_step for job in jobs),
    }
