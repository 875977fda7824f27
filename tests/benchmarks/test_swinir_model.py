from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.swinir import SwinIR, SwinLayer, WindowAttention, load_swinir, merge, partition, shift_mask
from flashray.errors import ConfigError
from tests.support.models import dc


def tiny(**settings: object) -> SwinIR:
    """A small SwinIR whose last convolution is not zero, so that every weight shows in what it answers."""
    torch.manual_seed(0)
    model = SwinIR(**({"channels": 12, "depths": (2, 2), "heads": 3, "window": 4} | settings))
    torch.nn.init.normal_(model.last[0].weight, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def y() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_windows_hold_their_positions_row_by_row_and_merge_undoes_partition():
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij")
    t = torch.stack([rows, columns], dim=-1)[None].expand(3, -1, -1, -1)
    windows = partition(t, 4)
    assert windows.shape == (3, 6, 16, 2)
    for n in range(6):
        inside = {(4 * (n // 3) + i, 4 * (n % 3) + j) for i in range(4) for j in range(4)}
        assert {tuple(position) for position in windows[1, n].tolist()} == inside
    assert windows[0, 1, :5].tolist() == [[0, 4], [0, 5], [0, 6], [0, 7], [1, 4]]
    assert torch.equal(merge(windows, 8, 12), t)


def test_the_mask_parts_what_rolling_brought_together():
    """A pair of a shifted window may look at each other only where both were neighbours before the roll."""
    height, width, window, shift = 8, 12, 4, 2
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rolled = torch.stack([rows, columns], dim=-1)[None].roll((-shift, -shift), dims=(1, 2))
    position = partition(rolled, window)[0]  # [N, T, 2] where each position comes from
    apart = (position[:, :, None] - position[:, None, :]).abs().amax(dim=-1)
    mask = shift_mask(height, width, window, shift)
    assert torch.equal(mask, apart >= window)
    assert mask.any()
    assert not mask[0].any()  # no border runs through the first window


@pytest.mark.parametrize("shift", [0, 2])
def test_a_layer_sees_its_own_window_and_no_more(shift: int):
    """Changing one position changes exactly the positions that share its window: 4×4, or what the border leaves."""
    torch.manual_seed(0)
    layer = SwinLayer(6, 2, window=4, shift=shift, mlp_ratio=2)
    t = torch.randn(1, 8, 12, 6)
    for row, column in ((0, 0), (1, 5), (3, 7), (7, 11), (0, 11)):
        changed = t.clone()
        changed[0, row, column] += torch.randn(6)  # a constant would be taken out again by the norm
        moved = (layer(changed) - layer(t)).abs().amax(dim=(0, -1)) > 1e-7
        same_row = (torch.arange(8) + 4 - shift) // 4 == (row + 4 - shift) // 4
        same_column = (torch.arange(12) + 4 - shift) // 4 == (column + 4 - shift) // 4
        assert torch.equal(moved, same_row[:, None] & same_column[None, :])


def test_attention_is_the_equation():
    """SoftMax(QKᵀ/√d + B) V, head by head and pair by pair."""
    torch.manual_seed(0)
    attention = WindowAttention(6, 2, window=2).double()
    torch.nn.init.normal_(attention.bias)
    t = torch.randn(1, 1, 4, 6, dtype=torch.float64)
    qkv = attention.qkv(t)[0, 0]
    answers = []
    for head in range(2):
        q, k, v = (qkv[:, 6 * part + 3 * head : 6 * part + 3 * head + 3] for part in range(3))
        score = q @ k.T / 3**0.5
        for i in range(4):
            for j in range(4):
                down, right = i // 2 - j // 2, i % 2 - j % 2
                score[i, j] += attention.bias[head, 3 * (down + 1) + right + 1]
        answers.append(score.softmax(dim=1) @ v)
    expected = attention.out(torch.cat(answers, dim=1))
    torch.testing.assert_close(attention(t)[0, 0], expected)
    masked = torch.zeros(1, 4, 4, dtype=torch.bool)
    masked[0, :2, 2:] = masked[0, 2:, :2] = True
    moved = t.clone()
    moved[0, 0, 2:] += 1
    assert torch.equal(attention(t, masked)[0, 0, :2], attention(moved, masked)[0, 0, :2])


def test_a_fresh_model_is_the_identity(y: Tensor):
    assert torch.equal(SwinIR(channels=12, depths=(2,), heads=3, window=4)(y), y)


@pytest.mark.parametrize("pixel_block", [1, 2])
@pytest.mark.parametrize("size", [(16, 16), (17, 23), (5, 8), (1, 3)])
def test_any_size_comes_back_in_its_own(size: tuple[int, int], pixel_block: int):
    model = tiny(pixel_block=pixel_block)
    y = torch.randn(2, 3, *size)
    assert model(y).shape == y.shape
    assert not torch.allclose(model(y), y, atol=1e-4)


def test_an_images_answer_does_not_depend_on_the_batch(y: Tensor):
    model = tiny().double()
    torch.testing.assert_close(model(y.double()), torch.cat([model(one[None].double()) for one in y]))


def test_everything_learns(y: Tensor):
    model = tiny().train()
    (model(y) - y).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_saved_and_loaded_it_answers_the_same(y: Tensor, tmp_path: Path):
    model = tiny(degradation="gaussian_blur", degradation_settings={"std": [1.0, 2.0]}, pixel_block=2)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    loaded = load_swinir(str(tmp_path))
    assert torch.equal(loaded(y), model(y))
    assert loaded.degradation == "gaussian_blur"
    assert loaded.config.degradation_settings == {"std": [1.0, 2.0]}
    assert len(loaded.sha256) == 64
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("source", ["/no/such/folder", "bundled:astigmatism"])
def test_a_missing_model_is_a_config_error(source: str):
    with pytest.raises(ConfigError, match=f"SwinIR {source}: not found; bundled are .*, or name a saved folder"):
        load_swinir(source)


def test_a_folder_of_another_model_is_a_config_error(tmp_path: Path):
    dc().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a AutoencoderDC; train one with python -m benchmarks.train_swinir"):
        load_swinir(str(tmp_path))


def test_a_model_without_safetensors_is_a_config_error(tmp_path: Path):
    tiny().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ConfigError, match=r"diffusion_pytorch_model\.safetensors is missing"):
        load_swinir(str(tmp_path))
