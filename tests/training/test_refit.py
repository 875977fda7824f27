from __future__ import annotations

import torch
from torch import Tensor

from flashray.images import to_uint8
from flashray.training.refit import RefitConfig, look, refit_head
from flashray.training.severity import SeverityConfig
from tests.models import SIDE
from tests.training.test_severity import tiny_task


def views(photo: Tensor, count: int) -> Tensor:
    """Windows of a photo, a quarter larger than the views that are cut from them."""
    side = SIDE * 5 // 4
    return torch.stack([to_uint8(photo[:, 7 * n : 7 * n + side, 9 * n : 9 * n + side]) for n in range(count)])


def test_refitting_brings_sigma_hat_to_the_true_error_and_leaves_the_trunk(photo: Tensor):
    task = tiny_task(photo, SeverityConfig()).eval()
    with torch.no_grad():
        task.model.head[-1].bias.fill_(3.0)  # a head that is far off
    y = torch.rand(2, 3, SIDE, SIDE)
    trunk = [value.clone() for value in task.model.trunk(y)]
    errors = refit_head(task, views(photo, 40), RefitConfig(views=40, epochs=400, learning_rate=0.01))
    assert errors["after"] < 0.2 * errors["before"]
    assert all(torch.equal(was, now) for was, now in zip(trunk, task.model.trunk(y), strict=True))
    features, sigma_bar = look(task, views(photo, 40), seed=0)
    with torch.no_grad():
        sigma_hat = torch.nn.functional.softplus(task.model.head(features)).squeeze(1)
    assert (sigma_hat - sigma_bar).abs().mean() < 0.1 * errors["before"]


def test_a_head_that_cannot_be_improved_is_kept(photo: Tensor):
    task = tiny_task(photo, SeverityConfig()).eval()
    before = {name: value.clone() for name, value in task.model.head.state_dict().items()}
    errors = refit_head(task, views(photo, 10), RefitConfig(views=10, epochs=2, learning_rate=0.0, weight_decay=0.0))
    assert errors["before"] == errors["after"]
    assert all(torch.equal(value, before[name]) for name, value in task.model.head.state_dict().items())
