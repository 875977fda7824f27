from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.training.loop import STATE_FILE, LoopConfig, Task, fit, learning_rate, load_averaged
from flashray.training.model_card import command_line
from flashray.training.photo_windows import shuffled_batches
from flashray.training.train_config import LaunchConfig

WINDOWS = torch.randint(0, 256, (24, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LOOP = LoopConfig(epochs=6, batch_size=4, learning_rate=1e-2, warmup_steps=5)


class Mean(Task):
    """Predict a picture's mean from its pixels; draws randomness from everywhere a task may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.model[1].bias.requires_grad_(False)  # some models are trained in part
        self.modes: list[bool] = []

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x = window_BCHW.float() / 255
        x = x + 0.1 * torch.randn_like(x) + 0.1 * torch.rand(x.shape, generator=generator)
        error = self.model(x).squeeze(1) - x.flatten(1).mean(dim=1)
        return {"loss": error.square().mean(), "absolute": error.abs().mean()}

    def validate(self) -> dict[str, float]:
        self.modes.append(self.training)
        return {"weight": self.model[3].weight.sum().item()}


class Killed(Exception):
    pass


class Recorder:
    """Keeps every report and checkpoint; may stop the training as a kill would, after a number of them."""

    def __init__(self, folder: Path, kill_after: int = 10**9) -> None:
        self.folder, self.kill_after = folder, kill_after
        self.metrics: list[dict[str, Any]] = []

    def __call__(self, metrics: dict[str, Any], save: Any) -> None:
        self.metrics.append(metrics)
        place = self.folder / str(metrics["epoch"])
        place.mkdir(parents=True)
        save(place)
        if len(self.metrics) >= self.kill_after:
            raise Killed


def batches(epoch: int) -> Iterable[Tensor]:
    return shuffled_batches(WINDOWS, 4, 0, epoch)


def train(report: Recorder, loop: LoopConfig = LOOP, task: Task | None = None, **options: Any) -> Task:
    task = task or Mean()
    fit(task, loop, batches, report, **({"batches_per_epoch": 6} | options))
    return task


def weights(task: Task) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def assert_equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert some.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in some.items())


@pytest.mark.parametrize("kill_after", [1, 3, 5])
def test_a_killed_training_resumes_to_the_same_bits(kill_after: int, tmp_path: Path):
    whole = Recorder(tmp_path / "whole")
    uninterrupted = train(whole)
    first, second = Recorder(tmp_path / "first", kill_after), Recorder(tmp_path / "second")
    with pytest.raises(Killed):
        train(first)
    torch.manual_seed(12345)  # whatever state the new process is in
    resumed = train(second, resume=tmp_path / "first" / str(kill_after))
    assert_equal(weights(resumed), weights(uninterrupted))
    assert [row["epoch"] for row in second.metrics] == list(range(kill_after + 1, 7))
    for ours, theirs in zip(first.metrics + second.metrics, whole.metrics, strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    last, expected = (torch.load(tmp_path / name / "6" / STATE_FILE, weights_only=True) for name in ("second", "whole"))
    assert_equal(last["model"], expected["model"])
    for ours, theirs in zip(last["ema"]["shadow_params"], expected["ema"]["shadow_params"], strict=True):
        assert torch.equal(ours, theirs)


def test_an_interrupted_epoch_is_done_again(tmp_path: Path):
    """A kill in the middle of epoch 4 costs that epoch's steps and changes nothing."""
    uninterrupted = train(Recorder(tmp_path / "whole"))
    calls = itertools.count()

    def breaking(epoch: int) -> Iterable[Tensor]:
        for batch in batches(epoch):
            if next(calls) == 21:
                raise Killed
            yield batch

    recorder = Recorder(tmp_path / "first")
    with pytest.raises(Killed):
        fit(Mean(), LOOP, breaking, recorder, batches_per_epoch=6)
    assert len(recorder.metrics) == 3
    assert_equal(weights(train(Recorder(tmp_path / "second"), resume=tmp_path / "first" / "3")), weights(uninterrupted))


def test_a_finished_training_is_left_as_it_is(tmp_path: Path):
    done, again = Recorder(tmp_path / "done"), Recorder(tmp_path / "again")
    finished = train(done)
    assert_equal(weights(train(again, resume=tmp_path / "done" / "6")), weights(finished))
    assert again.metrics == []


def test_averaged_weights_are_validated_returned_and_loaded(tmp_path: Path):
    recorder, task = Recorder(tmp_path), Mean()
    start = weights(task)
    train(recorder, task=task)
    state = torch.load(tmp_path / "6" / STATE_FILE, weights_only=True)
    returned, raw = weights(task), state["model"]
    assert not torch.equal(returned["3.weight"], raw["3.weight"])  # the state holds both kinds
    assert recorder.metrics[-1]["val/weight"] == returned["3.weight"].sum().item()
    assert torch.equal(returned["1.bias"], start["1.bias"])  # frozen
    fresh = Mean()
    assert load_averaged(fresh, tmp_path / "6") == {"weight": returned["3.weight"].sum().item()}
    assert_equal(weights(fresh), returned)
    assert not task.training
    assert task.modes == [False] * 6


def test_validation_does_not_disturb_training(tmp_path: Path):
    often = train(Recorder(tmp_path / "often"))
    seldom = Recorder(tmp_path / "seldom")
    rarely = train(seldom, LoopConfig(**(vars(LOOP) | {"validate_every": 4})))
    assert_equal(weights(often), weights(rarely))
    assert [row["epoch"] for row in seldom.metrics] == [4, 6]  # and always the last


def test_training_learns(tmp_path: Path):
    recorder = Recorder(tmp_path)
    train(recorder, LoopConfig(**(vars(LOOP) | {"epochs": 40, "validate_every": 5})))
    losses = [row["train/loss"] for row in recorder.metrics]
    assert losses[-1] < 0.5 * losses[0]
    assert recorder.metrics[-1]["step"] == 240
    assert recorder.metrics[-1]["samples"] == 960
    assert all(row["train/absolute"] > 0 for row in recorder.metrics)


def test_the_averages_of_an_epoch_are_of_all_its_batches(tmp_path: Path):
    class Constant(Mean):
        def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return super().forward(window_BCHW, generator) | {"pixel": window_BCHW.float().mean()}

    recorder = Recorder(tmp_path)
    train(recorder, task=Constant())
    for row in recorder.metrics:
        assert row["train/pixel"] == pytest.approx(WINDOWS.float().mean().item(), rel=1e-5)


def test_a_time_limit_stops_training_and_leaves_a_checkpoint(tmp_path: Path):
    times = itertools.count()
    recorder = Recorder(tmp_path)
    loop = LoopConfig(**(vars(LOOP) | {"epochs": 1000, "seconds": 20.0, "validate_every": 100}))
    train(recorder, loop, clock=lambda seconds: float(next(times)))  # every look at the clock takes a second
    (row,) = recorder.metrics
    assert row["epoch"] < 1000
    assert row["seconds"] >= 20
    assert row["step"] <= 21
    assert (tmp_path / str(row["epoch"]) / STATE_FILE).is_file()
    again = Recorder(tmp_path / "again")
    train(again, loop, resume=tmp_path / str(row["epoch"]))
    assert again.metrics == []  # its time is spent


def test_an_epoch_without_a_batch_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="batch_size is 4"):
        fit(Mean(), LOOP, lambda epoch: [], Recorder(tmp_path))


def test_workers_draw_different_views(tmp_path: Path):
    assert not torch.equal(
        train(Recorder(tmp_path / "0"), rank=0).model[3].weight, train(Recorder(tmp_path / "1"), rank=1).model[3].weight
    )


def test_bf16_only_changes_the_forward_pass(tmp_path: Path):
    task = train(Recorder(tmp_path), LoopConfig(**(vars(LOOP) | {"precision": "bf16"})))
    assert all(value.dtype == torch.float32 for value in task.model.state_dict().values())
    assert all(torch.isfinite(value).all() for value in task.model.state_dict().values())


def test_learning_rate_warms_up_and_decays_as_a_cosine():
    loop = LoopConfig(learning_rate=2e-4, warmup_steps=100)
    rates = [learning_rate(loop, step, 0.0) for step in range(150)]
    assert rates[0] == pytest.approx(2e-6)
    assert rates[49] == pytest.approx(1e-4)
    assert rates[99:] == pytest.approx([2e-4] * 51)
    decay = [learning_rate(loop, 10**6, progress / 100) for progress in range(101)]
    assert decay == sorted(decay, reverse=True)
    assert decay[50] == pytest.approx(2e-4 * 0.51)
    assert decay[100] == pytest.approx(2e-4 * 0.02)
    assert learning_rate(loop, 10**6, 7.0) == decay[100]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates + decay)
    assert learning_rate(LoopConfig(warmup_steps=0), 0, 0.0) == LoopConfig().learning_rate


def test_the_rate_follows_whichever_end_is_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[float] = []

    def recording(config: LoopConfig, step: int, progress: float) -> float:
        seen.append(progress)
        return learning_rate(config, step, progress)

    monkeypatch.setattr("flashray.training.loop.learning_rate", recording)
    train(Recorder(tmp_path / "steps"))
    assert seen == pytest.approx([step / 36 for step in range(36)])
    seen.clear()
    times = itertools.count()
    loop = LoopConfig(**(vars(LOOP) | {"epochs": 1000, "seconds": 10.0}))
    train(Recorder(tmp_path / "time"), loop, clock=lambda seconds: float(next(times)))
    assert seen == sorted(seen)
    assert seen[-1] >= 1


@pytest.mark.parametrize("counted", [True, False], ids=["the state says", "a state of before"])
@pytest.mark.parametrize("kill_after", [1, 3])
def test_a_training_that_measured_its_epochs_resumes_at_its_rate(
    kill_after: int, counted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rates: list[float] = []

    def recording(config: LoopConfig, step: int, progress: float) -> float:
        rates.append(learning_rate(config, step, progress))
        return rates[-1]

    monkeypatch.setattr("flashray.training.loop.learning_rate", recording)
    uninterrupted = train(Recorder(tmp_path / "whole"), batches_per_epoch=None)
    expected = rates[6 * kill_after :]
    with pytest.raises(Killed):
        train(Recorder(tmp_path / "first", kill_after), batches_per_epoch=None)
    last = tmp_path / "first" / str(kill_after)
    if not counted:
        state = torch.load(last / STATE_FILE, weights_only=True)
        del state["batches_per_epoch"]
        torch.save(state, last / STATE_FILE)
    rates.clear()
    resumed = train(Recorder(tmp_path / "second"), resume=last, batches_per_epoch=None)
    assert rates == expected
    assert rates[-1] < 0.1 * LOOP.learning_rate
    assert_equal(weights(resumed), weights(uninterrupted))


COOLING = LoopConfig(**(vars(LOOP) | {"decay": "cooldown", "cooldown": 0.5, "learning_rate": 1e-3}))


def test_a_cooldown_is_constant_and_then_falls_in_a_line():
    loop = LoopConfig(learning_rate=1e-3, warmup_steps=0, decay="cooldown", cooldown=0.25)
    rates = [learning_rate(loop, 10, progress / 100) for progress in range(101)]
    assert rates[:76] == pytest.approx([1e-3] * 76)
    assert rates[88] == pytest.approx(1e-3 * (0.02 + 0.98 * 12 / 25))
    assert rates[100] == pytest.approx(2e-5)
    assert not loop.cools(0.75)
    assert loop.cools(0.76)
    assert not LoopConfig().cools(1.0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_cooldown_outside_the_training_is_a_config_error(share: float):
    with pytest.raises(ConfigError, match="cooldown is"):
        LoopConfig(cooldown=share)


class Keeper:
    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0

    def __call__(self, save: Any) -> None:
        self.calls += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        save(self.folder)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/venv/bin/flashray", "train", "prior", "--photos=/data/me/a b"], "flashray train prior '--photos=me/a b'"),
        (["/x/flashray/__main__.py", "train", "prior", "--init", "/a/b/c"], "flashray train prior --init b/c"),
        (["jobs/train_prior.py", "--seed", "1"], "python jobs/train_prior.py --seed 1"),
    ],
)
def test_a_card_names_the_command_and_no_disk(argv: list[str], expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", argv)
    assert command_line() == expected


def test_a_device_that_nothing_has_is_refused_before_any_work():
    with pytest.raises(ConfigError, match=r"launch.device is 'gpu'"):
        LaunchConfig(device="gpu")


def test_an_index_of_a_gpu_is_refused_on_ray():
    """Ray gives each worker a GPU of its own choice; the index would have been a training on CPUs."""
    with pytest.raises(ConfigError, match=r"launch\.device is 'cuda:0'; give cuda, and CUDA_VISIBLE_DEVICES"):
        LaunchConfig(device="cuda:0")
    assert LaunchConfig("local", device="cuda:0").device == "cuda:0"


@pytest.mark.parametrize("name", ["epochs", "batch_size", "validate_every"])
def test_a_count_below_one_is_a_config_error(name: str):
    with pytest.raises(ConfigError, match=f"{name} is 0; give at least 1"):
        LoopConfig(**{name: 0})


def test_the_state_before_the_cooldown_is_kept_and_another_training_goes_on_from_it(tmp_path: Path):
    keep = Keeper(tmp_path / "constant")
    train(Recorder(tmp_path / "first"), COOLING, keep=keep)
    assert keep.calls == 1
    state = torch.load(tmp_path / "constant" / STATE_FILE, weights_only=True)
    assert state["step"] == 19  # the first step past half of 36
    task = Mean()
    start = weights(task)
    longer = LoopConfig(**(vars(COOLING) | {"go_on": str(tmp_path / "constant"), "learning_rate": 0.0, "epochs": 1}))
    train(Recorder(tmp_path / "second"), longer, task)
    assert_equal(weights(task), dict(zip(start, weights(task).values(), strict=True)))
    fresh = torch.load(tmp_path / "second" / "1" / STATE_FILE, weights_only=True)
    for name, value in state["model"].items():
        torch.testing.assert_close(fresh["model"][name], value)
    assert not torch.equal(fresh["model"]["3.weight"], start["3.weight"])


@pytest.fixture
def go_on(tmp_path: Path) -> Callable[..., tuple[Task, dict[str, Tensor]]]:
    """Goes on from one and the same training with other settings: the task, and its weights before averaging."""
    train(Recorder(tmp_path), LoopConfig(**(vars(LOOP) | {"epochs": 1})))

    def going_on(**settings: Any) -> tuple[Task, dict[str, Tensor]]:
        folder = tmp_path / str(settings)
        loop = LoopConfig(**(vars(LOOP) | {"epochs": 1, "go_on": str(tmp_path / "1")} | settings))
        task = train(Recorder(folder), loop)
        return task, torch.load(folder / "1" / STATE_FILE, weights_only=True)["model"]

    return going_on


def test_going_on_takes_the_new_weight_decay(go_on: Callable[..., tuple[Task, dict[str, Tensor]]]):
    _, free = go_on(weight_decay=0.0)
    _, decayed = go_on(weight_decay=10.0)
    assert decayed["3.weight"].norm() < 0.9 * free["3.weight"].norm()


def test_going_on_takes_the_new_decay_of_the_average(go_on: Callable[..., tuple[Task, dict[str, Tensor]]]):
    task, last = go_on(ema_decay=0.0)  # an average of the last step alone
    assert_equal(weights(task), last)


def test_going_on_from_a_uri_is_going_on_from_its_folder(
    go_on: Callable[..., tuple[Task, dict[str, Tensor]]], tmp_path: Path
):
    local, _ = go_on()
    remote, _ = go_on(go_on=f"file://{tmp_path}/1", progress_every=0.0)
    assert_equal(weights(remote), weights(local))


def test_a_training_that_resumes_in_its_cooldown_keeps_no_second_state(tmp_path: Path):
    with pytest.raises(Killed):
        train(Recorder(tmp_path / "first", 4), COOLING)
    keep = Keeper(tmp_path / "constant")
    train(Recorder(tmp_path / "second"), COOLING, resume=tmp_path / "first" / "4", keep=keep)
    assert keep.calls == 0


def test_a_training_that_resumes_where_its_cooldown_begins_keeps_the_state_before_it(tmp_path: Path):
    loop = LoopConfig(**(vars(COOLING) | {"cooldown": 0.51}))  # of 36 steps the 19th is the first that cools
    keeps = [Keeper(tmp_path / "whole"), Keeper(tmp_path / "resumed")]
    train(Recorder(tmp_path / "first"), loop, keep=keeps[0])
    train(Recorder(tmp_path / "second"), loop, resume=tmp_path / "first" / "3", keep=keeps[1])
    assert [keep.calls for keep in keeps] == [1, 1]
    whole, resumed = (torch.load(keep.folder / STATE_FILE, weights_only=True) for keep in keeps)
    assert whole["step"] == resumed["step"] == 18
    assert_equal(whole["model"], resumed["model"])


def test_progress_is_said_with_its_rate(tmp_path: Path):
    said: list[str] = []
    loop = LoopConfig(**(vars(LOOP) | {"progress_every": 1e-9}))
    task = train(Recorder(tmp_path / "said"), loop, say=said.append)
    assert len(said) == 36
    assert "draws_per_second" in said[0]
    assert "matrix_share" in said[0]
    silent: list[str] = []
    quiet = LoopConfig(**(vars(LOOP) | {"progress_every": 0}))
    assert_equal(weights(train(Recorder(tmp_path / "silent"), quiet, say=silent.append)), weights(task))
    assert silent == []


def test_short_epochs_come_oftener_and_draw_other_windows(tmp_path: Path):
    seen: list[bytes] = []

    def watched(epoch: int) -> Iterable[Tensor]:
        for batch in batches(epoch):
            seen.append(batch.numpy().tobytes())
            yield batch

    recorder = Recorder(tmp_path)
    loop = LoopConfig(**(vars(LOOP) | {"epoch_steps": 2}))
    fit(Mean(), loop, watched, recorder, batches_per_epoch=6)
    assert [row["step"] for row in recorder.metrics] == [2, 4, 6, 8, 10, 12]
    assert len(set(seen[:4])) == 4
    half = LoopConfig(**(vars(LOOP) | {"epoch_steps": 100}))
    assert_equal(weights(train(Recorder(tmp_path / "a"), half)), weights(train(Recorder(tmp_path / "b"))))
