"""On which device the networks run, and in what precision."""

from __future__ import annotations

from typing import Literal

import torch

from flashray.errors import ConfigError

Precision = Literal["float32", "bf16"]


def chosen_device(device: str) -> str:
    """The device of this name: `auto` is the GPU where there is one. ConfigError unless it is there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; give cpu, cuda or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, and PyTorch finds no GPU here; give cpu or auto")
    return device


def native_precision(device: str) -> Precision:
    """bf16 on GPUs since Ampere and on CPUs with AMX or AVX512-BF16; other devices emulate it, or gain nothing.

    On those it changes a recipe's mean PSNR by .001 dB and LPIPS by .0002 (`make bench`, part options).
    """
    if device.startswith("cuda"):
        pays = torch.cuda.get_device_capability() >= (8, 0)
    else:
        can = torch.cpu.get_capabilities()
        pays = bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    return "bf16" if pays else "float32"
