"""In what precision the networks run: bfloat16 where the device multiplies it natively.

There it changes a recipe's mean PSNR by .001 dB and LPIPS by .0002 (`make bench`, part options).
"""

from __future__ import annotations

from typing import Literal

import ray
import torch

from flashray.pipeline.cluster import Pools

Precision = Literal["float32", "bf16"]


def choose_precision(pools: Pools) -> Precision:
    """What a pool's devices are for. Of a CPU pool it is the driver's machine that is asked."""
    if pools.device == "cpu":
        return native("cpu")
    asked = ray.remote(native).options(num_gpus=pools.solver["num_gpus"]).remote("cuda")
    return ray.get(asked)


def native(device: str) -> Precision:
    """bf16 on GPUs since Ampere and on CPUs with AMX or AVX512-BF16: others emulate it, or gain nothing."""
    if device == "cuda":
        pays = torch.cuda.get_device_capability() >= (8, 0)
    else:
        can = torch.cpu.get_capabilities()
        pays = bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    return "bf16" if pays else "float32"
