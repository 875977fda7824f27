"""SwinIR: the supervised baseline, a Swin transformer that maps a measurement to the image in one pass."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from flashray.checkpoints import load_saved
from flashray.degradations.base import Operator


class SwinIR(ModelMixin, ConfigMixin):
    """x̂ = y + C₃(f₀ + C₂(R_K(… R_1(f₀)))), f₀ = C₁(y): 3×3 convolutions C, residual Swin transformer blocks R.

    Liang et al. 2021, "SwinIR: Image Restoration Using Swin Transformer", section 3, in the form that restores at the
    same size (denoising, artefact removal). Written from the paper. Other than there, C₃ starts at zero, so that
    training starts from x̂ = y, and `pixel_block` can trade detail for time.

    Args (the defaults are the paper's):
        channels: features of a position; a multiple of `heads`.
        depths: Swin layers of each residual block; every second one has shifted windows.
        window: side of the attention's windows in positions, even.
        mlp_ratio: hidden features of a layer's perceptron over `channels`.
        pixel_block: side of the blocks of pixels that are one position; 2 takes a fifth of the time of 1.
        degradation, degradation_settings, noise_std: the family that it was trained on (`noise_std` on [0, 1],
            one number or [low, high]).
    """

    name: ClassVar[str] = "swinir"

    @register_to_config
    def __init__(
        self,
        channels: int = 180,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        heads: int = 6,
        window: int = 8,
        mlp_ratio: float = 2.0,
        pixel_block: int = 1,
        degradation: str = "",
        degradation_settings: dict[str, Any] | None = None,
        noise_std: float | list[float] = 0.05,
    ) -> None:
        super().__init__()
        pixels = 3 * pixel_block**2
        self.multiple = window * pixel_block
        self.shallow = nn.Sequential(nn.PixelUnshuffle(pixel_block), nn.Conv2d(pixels, channels, 3, padding=1))
        self.blocks = nn.ModuleList(ResidualSwinBlock(channels, depth, heads, window, mlp_ratio) for depth in depths)
        self.fuse = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(channels, pixels, 3, padding=1), nn.PixelShuffle(pixel_block))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.sha256 = ""

    @property
    def degradation(self) -> str:
        """The name of the degradation family that it was trained on."""
        return str(self.config.degradation)

    def forward(self, y_BCHW: Tensor) -> Tensor:
        """x̂ of measurements in [-1, 1], of the same size whatever that is, not clipped."""
        height, width = y_BCHW.shape[2:]
        y = F.pad(y_BCHW, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        shallow = self.shallow(y)
        deep = shallow
        for block in self.blocks:
            deep = block(deep)
        return (y + self.last(shallow + self.fuse(deep)))[:, :, :height, :width]

    @torch.no_grad()
    def restore(self, y_BCHW: Tensor, operator: Operator) -> Tensor:
        """x̂ of measurements in [-1, 1], clipped to [-1, 1]."""
        return self(operator.pseudo_image(y_BCHW)).float().clamp(-1, 1)


def load_swinir(source: str, device: str | torch.device = "cpu") -> SwinIR:
    """Load a SwinIR for inference.

    Args:
        source: `bundled:<degradation>` or a folder as `python -m benchmarks.train_swinir` writes.

    Raises:
        ConfigError: if there is none, with the bundled ones listed; if the folder holds something else.
    """
    return load_saved(SwinIR, source, device, kind="SwinIR", room="swinir", job="python -m benchmarks.train_swinir")


class ResidualSwinBlock(nn.Module):
    """f + C(L_n(… L_1(f))): Swin layers L, every second one with its windows shifted by half, and a convolution C."""

    def __init__(self, channels: int, depth: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        shifts = [0 if n % 2 == 0 else window // 2 for n in range(depth)]
        self.layers = nn.ModuleList(SwinLayer(channels, heads, window, shift, mlp_ratio) for shift in shifts)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, f_BCHW: Tensor) -> Tensor:
        t_BHWC = f_BCHW.permute(0, 2, 3, 1)
        for layer in self.layers:
            t_BHWC = layer(t_BHWC)
        return f_BCHW + self.conv(t_BHWC.permute(0, 3, 1, 2))


class SwinLayer(nn.Module):
    """t ← t + Attention(Norm(t)) within windows, t ← t + MLP(Norm(t)) (Liang et al. 2021, equation 8)."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = round(channels * mlp_ratio)
        self.window, self.shift = window, shift
        self.attention_norm, self.mlp_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, t_BHWC: Tensor) -> Tensor:
        _, height, width, _ = t_BHWC.shape
        rolled = self.attention_norm(t_BHWC).roll((-self.shift, -self.shift), dims=(1, 2))
        mask = shift_mask(height, width, self.window, self.shift).to(t_BHWC.device) if self.shift else None
        attended = merge(self.attention(partition(rolled, self.window), mask), height, width)
        t_BHWC = t_BHWC + attended.roll((self.shift, self.shift), dims=(1, 2))
        return t_BHWC + self.mlp(self.mlp_norm(t_BHWC))


class WindowAttention(nn.Module):
    """SoftMax(QKᵀ/√d + B) V in every window, B a learnt number a head and relative position (ibid., equation 7)."""

    bias_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(heads, (2 * window - 1) ** 2))
        position = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = position[:, :, None] - position[:, None, :] + window - 1  # 0 … 2 window - 2 along either axis
        self.register_buffer("bias_index", apart[0] * (2 * window - 1) + apart[1], persistent=False)

    def forward(self, t_BNTC: Tensor, mask_NTT: Tensor | None = None) -> Tensor:
        """Attention among the T positions of each of N windows, but not where the mask is True."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(2, 3)  # [B, N, heads, T, d]
            for part in self.qkv(t_BNTC).chunk(3, dim=-1)
        )
        score = self.bias[:, self.bias_index]
        if mask_NTT is not None:
            score = score.masked_fill(mask_NTT[:, None], -torch.inf)
        score = score + (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return self.out((score.softmax(dim=-1) @ v).transpose(2, 3).flatten(3))


def partition(t_BHWC: Tensor, window: int) -> Tensor:
    """[B, N, T, C]: the N windows of T = window² positions, row by row."""
    batch, height, width, channels = t_BHWC.shape
    grid = t_BHWC.reshape(batch, height // window, window, width // window, window, channels)
    return grid.transpose(2, 3).reshape(batch, -1, window**2, channels)


def merge(t_BNTC: Tensor, height: int, width: int) -> Tensor:
    """[B, H, W, C]: what `partition` took apart."""
    batch, _, area, channels = t_BNTC.shape
    window = round(area**0.5)
    grid = t_BNTC.reshape(batch, height // window, width // window, window, window, channels)
    return grid.transpose(2, 3).reshape(batch, height, width, channels)


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """[N, T, T] bool: pairs of a window that rolling brought together from opposite borders of the image."""

    def side(length: int) -> Tensor:
        return (torch.arange(length) >= length - shift).long()  # the rolled image's last rows are its first ones

    border = 2 * side(height)[:, None] + side(width)[None, :]
    border_NT = partition(border[None, :, :, None], window)[0, :, :, 0]
    return border_NT[:, :, None] != border_NT[:, None, :]
