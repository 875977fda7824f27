from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flashray.training.autoencoder_task import AutoencoderConfig, AutoencoderTask, make_autoencoder
from flashray.training.discriminator import PatchDiscriminator, hinge_losses
from flashray.training.loop import STATE_FILE, LoopConfig, fit
from flashray.training.photo_windows import shuffled_batches

CONFIG = AutoencoderConfig(4, (8, 16, 16), (0, 1, 1), (0, 1, 1), crop=32, lpips=0.0, discriminator=0.1)
WINDOWS = torch.randint(0, 256, (8, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_each_loss_moves_its_own_side_alone():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    y, x = torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)
    assert judge(x).shape == (2, 1, 4, 4)
    fooled, judged = hinge_losses(judge, y, x)
    fooled.backward(retain_graph=True)
    assert y.grad is not None
    assert all(parameter.grad is None for parameter in judge.parameters())
    y.grad = None
    judged.backward()
    assert y.grad is None
    assert all(parameter.grad is not None for parameter in judge.parameters())


def test_it_learns_to_tell_noise_from_flat_images():
    torch.manual_seed(0)
    judge = PatchDiscriminator(8)
    optimizer = torch.optim.Adam(judge.parameters(), 2e-3)
    for _ in range(60):
        _, judged = hinge_losses(judge, torch.randn(8, 3, 32, 32), torch.rand(8, 3, 1, 1).expand(8, 3, 32, 32))
        optimizer.zero_grad()
        judged.backward()
        optimizer.step()
    assert judged.item() < 0.3


def task() -> AutoencoderTask:
    torch.manual_seed(0)
    return AutoencoderTask(make_autoencoder(CONFIG), CONFIG, None, torch.zeros(2, 3, 32, 32))


def train(folder: Path, epochs: int, resume: Path | None = None) -> AutoencoderTask:
    trained = task()

    def report(metrics: dict, save: object) -> None:
        place = folder / str(metrics["epoch"])
        place.mkdir(parents=True)
        save(place)  # type: ignore[operator]

    loop = LoopConfig(epochs=epochs, batch_size=4, learning_rate=1e-3, warmup_steps=0, decay="cooldown")
    fit(trained, loop, lambda epoch: shuffled_batches(WINDOWS, 4, 0, epoch), report, resume, batches_per_epoch=2)
    return trained


def test_it_is_trained_beside_the_autoencoder_and_resumes_with_it(tmp_path: Path):
    whole = train(tmp_path / "whole", 4)
    resumed = train(tmp_path / "again", 4, tmp_path / "whole" / "2")
    assert whole.companion is not None
    assert resumed.companion is not None
    fresh: dict[str, Tensor] = task().companion.state_dict()  # type: ignore[union-attr]
    for name, value in whole.companion.state_dict().items():
        assert torch.equal(resumed.companion.state_dict()[name], value)
        assert not torch.equal(fresh[name], value)
    state = torch.load(tmp_path / "whole" / "4" / STATE_FILE, weights_only=True)
    assert set(state["companion"]) == set(fresh)
