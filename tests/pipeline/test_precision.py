from __future__ import annotations

import pytest
import torch

from flashray.pipeline.precision import native
from flashray.pipeline.run import Run
from flashray.pipeline.run_config import ReconstructConfig


@pytest.mark.parametrize(
    ("can", "expected"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "float32"), ({}, "float32")],
)
def test_a_cpu_that_multiplies_bfloat16_uses_it(can: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert native("cpu") == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_that_multiplies_bfloat16_uses_it(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert native("cuda") == expected


@pytest.mark.parametrize(
    ("asked", "record", "used"),
    [
        ("auto", {}, "auto"),
        ("auto", {"precision": "bf16"}, "bf16"),  # the choice of the start that began the run
        ("float32", {"precision": "bf16"}, "float32"),
    ],
)
def test_what_a_run_began_with_it_goes_on_with(asked: str, record: dict[str, str], used: str, tmp_path):
    config = ReconstructConfig("/photos", str(tmp_path), precision=asked)  # type: ignore[arg-type]
    assert Run(config, None, dict(record), 0.0).asked.precision == used  # type: ignore[arg-type]
