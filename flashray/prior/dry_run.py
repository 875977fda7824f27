"""Running a prior's networks without data: whether they run at all, and the shapes that they answer with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.prior.pixel_space import SpaceToDepth
from flashray.schedule import NoiseSchedule


def dry_run(
    autoencoder: nn.Module,
    denoiser: nn.Module,
    schedule: NoiseSchedule,
    channels: int,
    factor: int,
    side: int,
    name: str,
) -> None:
    """Run autoencoder and denoiser on tensors that have a shape and no values (torch's meta device).

    A config can hold a value that fits every weight and fails, or changes the shape, once something is computed. This
    costs the networks' Python code and no arithmetic. `channels` and `side` are a latent's; `factor` is the pixels to a
    side of one of its positions; errors have the prior's `name`. ConfigError if a network fails, or does not answer
    with the shape that it should.
    """
    if not isinstance(autoencoder, SpaceToDepth):
        x = torch.zeros(1, 3, side * factor, side * factor, device="meta")
        found = _answer(autoencoder, (x,), name, "autoencoder")
        if found is not None and found.shape != x.shape:
            raise ConfigError(
                f"prior {name}: the autoencoder gives {list(found.shape)} back for {list(x.shape)}; its "
                "config is not that of its weights"
            )
    z = torch.zeros(1, channels, side, side, device="meta")
    found = _answer(denoiser, (z, schedule.timesteps[:1].to("meta")), name, "denoiser")
    if found is not None and (found.shape[0], *found.shape[2:]) != (1, side, side):
        raise ConfigError(
            f"prior {name}: the denoiser answers latents of {list(z.shape)} with {list(found.shape)}; its config is "
            "not that of its weights"
        )


@torch.no_grad()
def _answer(model: nn.Module, inputs: tuple[Tensor, ...], name: str, what: str) -> Tensor | None:
    """The shape of what a network says; None where it needs values to go on."""
    values = [*model.named_parameters(), *model.named_buffers()]
    empty = {key: torch.empty_like(value, device="meta") for key, value in values}
    dtype = next((value.dtype for value in empty.values() if value.is_floating_point()), torch.float32)
    given = tuple(value.to(dtype) if value.ndim > 1 else value for value in inputs)
    try:
        found: Tensor = torch.func.functional_call(model, empty, given).sample
    except Exception as error:  # any kind: the config's values go unchecked into the model's arithmetic
        if "meta" in str(error).lower():
            return None
        kind = type(error).__name__
        raise ConfigError(f"prior {name}: the {what} of this config cannot run ({kind}: {error})") from error
    return found
