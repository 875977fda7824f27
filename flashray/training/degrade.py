"""Measurements for training and validation: photos degraded when they are used, at random severities or a given one."""

from __future__ import annotations

import torch
from torch import Tensor

from flashray.degradations import Degradation, Parameters
from flashray.degradations.noise import add_noise, draw_noise_std


@torch.no_grad()
def degrade(
    x_BCHW: Tensor, degradation: Degradation, noise: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Parameters]:
    """(a measurement of each image in [-1, 1], of its own random severity, as input of a network; its parameters)

    Args:
        noise: (low, high) of the measurement's noise_std, on the [0, 1] scale; each image draws its own.
        generator: on the CPU; draws severities and noise_std. The noise itself comes from torch's global generator,
            which works on any device and which the training loop seeds at every epoch.

    Returns:
        The parameters are on the images' device, `noise_std` among them.
    """
    parameters = degradation.sample_parameters(generator, len(x_BCHW))
    noise_std_B = draw_noise_std(noise, len(x_BCHW), generator).to(x_BCHW.device)
    with torch.autocast(x_BCHW.device.type, enabled=False):
        on_device = {name: value.to(x_BCHW.device) for name, value in parameters.items()}
        operator = degradation.bind(on_device, (x_BCHW.shape[2], x_BCHW.shape[3]))
        y = operator.A(x_BCHW)
        seen = operator.pseudo_image(y + 2 * noise_std_B[:, None, None, None] * torch.randn_like(y))
    return seen, on_device | {"noise_std": noise_std_B}


@torch.no_grad()
def degrade_at(
    x_BCHW: Tensor, level_B: Tensor, degradation: Degradation, noise_std_B: Tensor, seed_B: Tensor
) -> Tensor:
    """A measurement of each image in [-1, 1] at severity 0 (the family's mildest) … 1, as input of a network.

    Its noise comes from its own seed; parameters that the severity does not decide are the same at every level.
    """
    drawn = degradation.parameters_at(level_B.cpu(), torch.Generator().manual_seed(0))
    parameters = {name: value.to(x_BCHW.device) for name, value in drawn.items()}
    operator = degradation.bind(parameters, (x_BCHW.shape[2], x_BCHW.shape[3]))
    return operator.pseudo_image(add_noise(operator.A(x_BCHW), noise_std_B.to(x_BCHW.device), seed_B))
