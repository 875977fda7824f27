from __future__ import annotations

import pytest
import torch

from flashray.precision import native_precision


@pytest.mark.parametrize(
    ("can", "expected"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "float32"), ({}, "float32")],
)
def test_a_cpu_that_multiplies_bfloat16_uses_it(can: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert native_precision("cpu") == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_that_multiplies_bfloat16_uses_it(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert native_precision("cuda") == expected
