from __future__ import annotations

import pytest
import torch
from torch import nn

from flashray.training.rate import Rate, matrix_rate, operations_a_sample


def test_operations_are_those_of_the_products_and_their_gradients():
    model = nn.Linear(32, 16, bias=False)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    counted = operations_a_sample(lambda x, generator: {"loss": model(x).square().sum()}, torch.rand(5, 32))
    # forward, and the gradient of the weights; the input needs none
    assert counted == 2 * 2 * 32 * 16
    assert not torch.equal(torch.rand(1), expected)  # the batch itself was drawn here


def test_counting_draws_nothing_from_the_training():
    model = nn.Linear(4, 4)
    batch = torch.rand(2, 4)
    torch.manual_seed(0)
    operations_a_sample(lambda x, generator: {"loss": (model(x) * torch.randn(2, 4)).sum()}, batch)
    after = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), after)


def test_a_line_is_due_every_so_many_seconds(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    rate = Rate(10.0, draws=2, operations=1e9, peak=1e11)
    lines = []
    for _ in range(25):
        now[0] += 1
        lines.append(rate.add(30))
    assert [index for index, line in enumerate(lines) if line] == [9, 19]
    assert lines[9] == {"draws_per_second": 60.0, "matrix_share": pytest.approx(0.3)}
    silent = Rate(0, 1, 0, 1)
    now[0] += 1000
    assert silent.add(1) is None


def test_a_rate_is_measured():
    assert matrix_rate("cpu", torch.float32) > 1e8
