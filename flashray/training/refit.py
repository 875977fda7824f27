"""Refit a severity encoder's head to the trunk that training has ended with."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashray.severity.loss import error_std
from flashray.training.photos import random_views
from flashray.training.severity import SeverityTask


@dataclass(frozen=True)
class RefitConfig:
    """How to refit the head; while trunk and head train together, σ̂ runs after an error that keeps changing.

    Attributes:
        views: degraded views to look at, each once; 0 leaves the head as it is.
        epochs: passes of the head over them, at most.
        held_out: share of the views that decides which epoch's head is kept.
    """

    views: int = 0
    epochs: int = 300
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    held_out: float = 0.1


@torch.no_grad()
def look(task: SeverityTask, window_NCHW: Tensor, seed: int, bf16: bool = False) -> tuple[Tensor, Tensor]:
    """([N, features] pooled features of degraded views, [N] their true errors σ̄); one view a window, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    device = task.prior.device
    pooled, sigma_bar = [], []
    for window in window_NCHW.split(16):
        x = random_views(window.to(device), task.prior.sample_size, generator)
        y = task.degrade(x, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            z_hat, features = task.model.trunk(y)
            z0 = task.prior.encode(x)
        pooled.append(features.float().cpu())
        sigma_bar.append(error_std(z_hat.float(), z0.float()).cpu())
    return torch.cat(pooled), torch.cat(sigma_bar)


def refit_head(
    task: SeverityTask, window_NCHW: Tensor, config: RefitConfig, seed: int = 0, bf16: bool = False
) -> dict[str, float]:
    """Fit `task.model.head` to σ̄ by least squares with the trunk as it is.

    Returns:
        Mean |σ̂ - σ̄| on the held-out views, before and after.
    """
    features, sigma_bar = look(task, window_NCHW, seed, bf16)
    held = max(1, round(len(features) * config.held_out))
    (test_x, train_x), (test_s, train_s) = (value.split([held, len(value) - held]) for value in (features, sigma_bar))
    head = copy.deepcopy(task.model.head).cpu().requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)

    def errors(x: Tensor, sigma: Tensor) -> Tensor:
        return nn.functional.softplus(head(x)).squeeze(1) - sigma

    with torch.no_grad():
        before = errors(test_x, test_s)
    best, kept = before.square().mean().item(), copy.deepcopy(head.state_dict())
    for _ in range(config.epochs):
        order = torch.randperm(len(train_x))
        for rows in order.split(256):
            loss = errors(train_x[rows], train_s[rows]).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        decay.step()
        with torch.no_grad():
            held_out = errors(test_x, test_s).square().mean().item()
        if held_out < best:
            best, kept = held_out, copy.deepcopy(head.state_dict())
    head.load_state_dict(kept)
    task.model.head.load_state_dict(kept)
    with torch.no_grad():
        after = errors(test_x, test_s)
    return {"before": before.abs().mean().item(), "after": after.abs().mean().item()}
