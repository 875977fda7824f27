"""A small discriminator of patches, against which a decoder learns texture."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """Images [B, 3, H, W] to a map [B, 1, H/8, W/8]: positive where a patch looks real.

    Three convolutions of stride 2 see 29 pixels a side. Nothing is normalised over the batch or over space, so that a
    patch is judged by itself.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for taken, given in pairwise(widths):
            layers += [nn.Conv2d(taken, given, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.layers(x_BCHW)


def hinge_losses(judge: PatchDiscriminator, y_BCHW: Tensor, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """(The decoder's loss on its image y, the discriminator's on y and the real x), to be summed and minimised at once.

    The first gives the discriminator's weights no gradient, the second gives y none.
    """
    fixed = {name: value.detach() for name, value in judge.named_parameters()}
    fooled = -functional_call(judge, fixed, (y_BCHW,)).float().mean()
    fake, real = judge(y_BCHW.detach()).float(), judge(x_BCHW).float()
    return fooled, 0.5 * (F.relu(1 + fake).mean() + F.relu(1 - real).mean())
