"""Single-file checkpoints become folders, with nothing but what is on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashray.errors import ConfigError
from flashray.prior import convert_single_file, load_prior
from tests.support.models import edit_json
from tests.support.prior_layouts import LAYOUTS
from tests.support.prior_single_file import WEIGHTS, save_single_file

KINDS = [name for name in LAYOUTS if name.startswith("Stable Diffusion")]


def configs_of(folder: Path) -> Path:
    """A copy of a pipeline's folder without its weights."""
    like = folder.with_name("like")
    shutil.copytree(folder, like)
    for path in like.rglob(WEIGHTS):
        path.unlink()
    return like


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_becomes_the_folder_that_it_was_made_of(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    folder = LAYOUTS[kind](tmp_path / "folder")
    file, before = save_single_file(folder, tmp_path / "one.safetensors"), load_prior(str(folder)).state_dict()
    output = convert_single_file(file, configs_of(folder), tmp_path / "made" / "output")
    after = load_prior(str(output)).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(ConfigError, match="is there already"):
        convert_single_file(file, configs_of(output), output)


def cut(folder: Path, file: Path) -> None:
    tensors = load_file(file)
    tensors.pop("model.diffusion_model.middle_block.0.in_layers.2.weight")
    save_file(tensors, file)


def of_a_lora(folder: Path, file: Path) -> None:
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(1)}, file)


def of_another_size(folder: Path, file: Path) -> None:
    edit_json(folder / "unet" / "config.json", cross_attention_dim=16)
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=True)


def unconditional(folder: Path, file: Path) -> None:
    shutil.rmtree(folder)
    LAYOUTS["LDM, VQ-f4"](folder)


WRONG: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "cut": (cut, "KeyError|the weights lack"),
    "LoRA": (of_a_lora, "does not hold the AutoencoderKL of"),
    "another size": (of_another_size, "has the shape"),
    "unconditional": (unconditional, "diffusers has no conversion of single files for a VQModel"),
}


@pytest.mark.parametrize("trouble", WRONG)
def test_what_cannot_be_converted_is_named_and_leaves_nothing(trouble: str, tmp_path: Path):
    folder = LAYOUTS["Stable Diffusion XL"](tmp_path / "folder")
    file = save_single_file(folder, tmp_path / "one.safetensors")
    damage, message = WRONG[trouble]
    damage(folder, file)
    with pytest.raises(ConfigError, match=message):
        convert_single_file(file, folder, tmp_path / "output")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "one.safetensors"}
