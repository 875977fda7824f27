"""The learned blur, on random weights: nobody's checkpoint is in the repository."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flashray.degradations import make_degradation
from flashray.degradations.kernel_wizard import BlurGenerator, KernelWizard, published_names
from flashray.errors import ConfigError
from tests.support.unit_scale import on_unit_scale

SIZE = (128, 128)
WIDE = (128, 256)
WIDTH, FRONT, BACK = 4, 1, 2


def published(network: BlurGenerator) -> dict[str, torch.Tensor]:
    """The network's tensors as the published checkpoint names them, with parts that a generator does not use."""
    names = published_names(len(network.front), len(network.back))
    state = {f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in network.state_dict().items()}
    return state | {"kernel_extractor.model.1.weight": torch.zeros(1)}


@pytest.fixture(scope="module")
def network() -> BlurGenerator:
    torch.manual_seed(0)
    network = BlurGenerator(WIDTH, FRONT, BACK)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):  # so that signals come through
            torch.nn.init.kaiming_normal_(module.weight)
    return network


@pytest.fixture(scope="module")
def checkpoint(network: BlurGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "wizard.safetensors"
    save_file(published(network), path)
    return path


def family(checkpoint: Path, **settings: object) -> KernelWizard:
    return make_degradation("kernel_wizard", {"weights": str(checkpoint), **settings})  # type: ignore[return-value]


def images(n: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.rand(n, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def doubles(wizard: KernelWizard, n: int) -> dict[str, torch.Tensor]:
    drawn = wizard.sample_parameters(torch.Generator().manual_seed(0), n)
    return {name: value.double() for name, value in drawn.items()}


def test_images_are_blurred_by_their_own_codes(checkpoint: Path):
    wizard, x = family(checkpoint), images(2, WIDE)
    parameters = doubles(wizard, 2)
    operator = wizard.bind(parameters, WIDE)
    assert operator.code_BCHW.shape == (2, 8 * WIDTH, 1, 2)
    assert operator.code_BCHW.std().item() == pytest.approx(1.2, rel=0.2)
    y = on_unit_scale(operator, x)
    assert y.shape == x.shape
    for n in range(2):
        row = {name: value[n : n + 1] for name, value in parameters.items()}
        torch.testing.assert_close(on_unit_scale(wizard.bind(row, WIDE), x[n : n + 1])[0], y[n], rtol=0, atol=1e-10)
        torch.testing.assert_close(
            on_unit_scale(operator.select(torch.tensor([n])), x[n : n + 1])[0], y[n], rtol=0, atol=1e-10
        )
    same = on_unit_scale(wizard.bind({name: value[:1].expand(2) for name, value in parameters.items()}, WIDE), x)
    assert (same[1] - y[1]).abs().max() > 1e-3  # the code matters
    with pytest.raises(TypeError, match="no adjoint"):
        operator.A_adjoint(y)


def test_the_gradient_is_that_of_finite_differences(checkpoint: Path):
    wizard = family(checkpoint)
    operator = wizard.bind(doubles(wizard, 1), SIZE)
    x = images(1).requires_grad_()
    assert torch.autograd.gradcheck(partial(on_unit_scale, operator), x, fast_mode=True)
    assert not any(parameter.requires_grad for parameter in operator.network.parameters())


def test_the_papers_setting_blurs_half_the_contrast(checkpoint: Path):
    plain, paper, x = family(checkpoint), family(checkpoint, paper=True), images(1)
    parameters = doubles(plain, 1)
    expected = 2 * on_unit_scale(plain.bind(parameters, SIZE), (x + 1) / 2) - 1
    torch.testing.assert_close(on_unit_scale(paper.bind(parameters, SIZE), x), expected.clamp(-1, 1))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_pickled_checkpoint_is_read_too(network: BlurGenerator, checkpoint: Path, tmp_path: Path, prefix: str):
    torch.save({prefix + name: value for name, value in published(network).items()}, tmp_path / "wizard.pth")
    x, plain = images(1), family(checkpoint)
    other = family(tmp_path / "wizard.pth")
    assert other.weights_sha256() != plain.weights_sha256()
    parameters = doubles(plain, 1)
    assert torch.equal(on_unit_scale(other.bind(parameters, SIZE), x), on_unit_scale(plain.bind(parameters, SIZE), x))


def test_names_are_those_of_the_published_checkpoint():
    names = published_names(10, 20)
    theirs = set(names.values())
    assert len(theirs) == len(names)
    assert theirs >= {
        "feature_extractor.4",
        "feature_extractor.15.conv2",
        "adapter.model.down.0",
        "adapter.model.submodule.submodule.submodule.submodule.down.1",
        "adapter.model.submodule.up.1.double_conv.2",
        "recon_trunk.19.conv1",
        "recon_trunk.20",
        "recon_trunk.28",
    }
    with torch.device("meta"):
        state = BlurGenerator().state_dict()
    assert {name.rpartition(".")[0] for name in state} == set(names)
    # channels of the code join those of the deepest features
    assert tuple(state["up.4.0.weight"].shape) == (512, 1024, 5, 5)
    assert "down.0.bias" not in state


def test_missing_and_foreign_weights_are_config_errors(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent.pth' is no file; name the published checkpoint"):
        family(tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match="is no file"):
        make_degradation("kernel_wizard")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for name in ("other.safetensors", "broken.pth"):
        with pytest.raises(ConfigError, match=f"{name} does not hold the published generator"):
            family(tmp_path / name).check_size(SIZE)


def test_sizes_settings_and_parameters_that_do_not_fit(checkpoint: Path):
    family(checkpoint).check_size(SIZE)
    with pytest.raises(ConfigError, match="multiples of 128"):
        family(checkpoint).check_size((128, 100))
    for settings in ({"strength": [-1, 1]}, {"paper": 1}):
        with pytest.raises(ConfigError, match="kernel_wizard"):
            family(checkpoint, **settings)
    with pytest.raises(ConfigError, match="code_strength"):
        family(checkpoint).check_parameters({"code_strength": torch.tensor([11.0]), "code_seed": torch.tensor([0.0])})
