from __future__ import annotations

import pytest
import torch

from flashray.device import chosen_device, native_precision
from flashray.errors import ConfigError


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


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (chosen_device("auto"), chosen_device("cpu")) == ("cpu", "cpu")
    for device, message in {"cuda": "finds no GPU here", "mps": "give cpu, cuda", "gpu": "give cpu, cuda"}.items():
        with pytest.raises(ConfigError, match=message):
            chosen_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (chosen_device("auto"), chosen_device("cuda:0")) == ("cuda", "cuda:0")
