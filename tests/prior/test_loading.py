"""What is refused before any work, and what the hash covers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from safetensors.torch import load_file, save_file

from flashray.errors import ConfigError
from flashray.prior import bundled, check_prior, hash_weights, load_prior
from flashray.prior.check import picture
from flashray.severity import SeverityEncoder, load_severity_encoder
from tests.support.models import dc, edit_json, kl, save_pipeline, unet
from tests.support.prior_layouts import LAYOUTS

WEIGHTS = "diffusion_pytorch_model.safetensors"
BUNDLED_HASH = "4711f91dbe8dd8a9b3276bc02a46c10a7d29d3f4388dccfc7b491facaa6fecaf"


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_the_bundled_prior_keeps_its_hash():
    """Fingerprints of runs rest on it."""
    assert load_prior("bundled").sha256 == hash_weights(bundled("prior")) == BUNDLED_HASH


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_hash_covers_what_is_loaded_and_nothing_else(name: str, tmp_path: Path):
    folder = LAYOUTS[name](tmp_path)
    before = load_prior(str(folder)).sha256
    assert before == hash_weights(folder)
    (folder / "safety_checker").mkdir()
    for other in ("safety_checker/model.safetensors", "v1-5-pruned.safetensors", "notes.json"):
        (folder / other).write_text("{}")
    assert hash_weights(folder) == before
    for path in (*folder.glob("*/config.json"), *folder.glob("*/*.safetensors"), *folder.glob("null_prompt.*")):
        if path.parent.name == "safety_checker":
            continue
        saved = path.read_bytes()
        path.write_bytes(saved + b" ")
        assert hash_weights(folder) != before, path
        path.write_bytes(saved)


def test_loading_leaves_the_random_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_prior("bundled")
    load_severity_encoder("bundled:gaussian_blur")
    assert torch.equal(torch.rand(3), expected)


def shard(folder: Path) -> list[str]:
    """Split a model's weights in two files with an index, as diffusers does with large ones."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    files = ["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"]
    where = {}
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return files


def test_sharded_weights_open_and_their_shards_are_hashed(tmp_path: Path):
    folder = save_pipeline(tmp_path, dc())
    before = load_prior(str(folder))
    first, _ = shard(folder / "unet")
    after = load_prior(str(folder))
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([500])
    assert torch.equal(before.epsilon(z, t), after.epsilon(z, t))
    change(folder / "unet" / first, lambda tensors: next(iter(tensors.values())).add_(1))
    assert hash_weights(folder) != after.sha256


def edit_map(folder: Path, name: str) -> None:
    path = folder / f"{WEIGHTS}.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    path.write_text(json.dumps(index))


def to_bin(folder: Path) -> None:
    torch.save({}, folder / "unet" / "weights.bin")
    shard(folder / "unet")
    edit_map(folder / "unet", "weights.bin")


def outside(folder: Path) -> None:
    shard(folder / "unet")
    shutil.copy(folder / "vqvae" / WEIGHTS, folder / "other.safetensors")
    edit_map(folder / "unet", "../other.safetensors")


def missing_shard(folder: Path) -> None:
    _, second = shard(folder / "unet")
    (folder / "unet" / second).unlink()


def doubled(folder: Path) -> None:
    first, second = shard(folder / "unet")
    some = load_file(folder / "unet" / first)
    change(folder / "unet" / second, lambda tensors: tensors.update(some))


def tensors_of(component: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda folder: change(folder / component / WEIGHTS, edit)


def config_of(component: str, **values: Any) -> Callable[[Path], None]:
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    return lambda folder: edit_json(folder / component / name, **values)


def text_of(path: str, text: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / path).write_bytes(text.encode() if isinstance(text, str) else text)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled shards": (to_bin, r"index\.json: names weights\.bin; flashray opens safetensors only"),
    "shards elsewhere": (outside, r"names \.\./other\.safetensors, which is not a file beside it"),
    "missing shard": (missing_shard, r"00002-of-00002\.safetensors, which is not a file beside it"),
    "doubled tensors": (doubled, "tensors .* also in another file"),
    "empty index": (text_of(f"unet/{WEIGHTS}.index.json", "{}"), "weight_map is missing or empty"),
    "cut file": (text_of(f"unet/{WEIGHTS}", b"\x10\x00\x00"), "not a readable safetensors file"),
    "missing tensors": (
        tensors_of("unet", lambda tensors: [tensors.pop(name) for name in ("conv_in.weight", "conv_in.bias")]),
        r"unet: the weights lack 2 tensors \(conv_in\.bias, conv_in\.weight\)",
    ),
    "no tensors": (text_of(f"unet/{WEIGHTS}", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"), r"the weights lack \d+ tensors"),
    "strange tensors": (
        tensors_of("vqvae", lambda tensors: tensors.update(discriminator=torch.zeros(3))),
        r"vqvae: the weights hold 1 tensor \(discriminator\), which the config's model has no place for",
    ),
    "another model's": (
        lambda folder: shutil.copy(folder / "vqvae" / WEIGHTS, folder / "unet" / WEIGHTS),
        r"unet: the weights lack \d+ tensors \(.* and \d+ more\); they are of another model",
    ),
    "another shape": (
        tensors_of("unet", lambda tensors: tensors.update({"conv_in.weight": torch.zeros(16, 4, 5, 5)})),
        r"unet: conv_in\.weight has the shape \[16, 4, 5, 5\], and the config asks for \[16, 4, 3, 3\]",
    ),
    "NaN": (
        tensors_of("unet", lambda tensors: tensors["conv_out.bias"].fill_(torch.nan)),
        r"unet: 1 tensor \(conv_out\.bias\) hold NaN or infinite values",
    ),
    "infinite": (
        tensors_of("vqvae", lambda tensors: tensors["decoder.conv_in.weight"].view(-1)[3:4].fill_(torch.inf)),
        r"vqvae: 1 tensor \(decoder\.conv_in\.weight\) hold NaN or infinite",
    ),
    "no JSON": (text_of("unet/config.json", "{"), r"unet/config\.json: not a readable JSON file"),
    "not UTF-8": (text_of("unet/config.json", b"\xff\xfe{}"), r"config\.json: not a readable JSON file"),
    "no object": (text_of("unet/config.json", "[1]"), r"unet/config\.json: holds a list"),
    "deep": (text_of("vqvae/config.json", "[" * 100_000), r"vqvae/config\.json: not a readable JSON file"),
    "doubled key": (text_of("unet/config.json", '{"a": 1, "a": 2}'), "the key 'a' is given twice"),
    "index": (text_of("model_index.json", "null"), r"model_index\.json: holds a NoneType"),
    "negative size": (config_of("unet", block_out_channels=[16, -3]), "block_out_channels holds -3"),
    "large size": (config_of("unet", sample_size=100_000), "sample_size holds 100000; give 0 … 8192"),
    "large channels": (config_of("unet", block_out_channels=[16, 100_000]), "the weights lack|has the shape|be built"),
    "many layers": (config_of("unet", layers_per_block=100_000), "layers_per_block holds 100000; give 0 … 1000"),
    "size of text": (config_of("unet", sample_size="8"), "sample_size is '8'; give an integer"),
    "size of two": (config_of("unet", sample_size=[8, 8]), r"sample_size is \[8, 8\]; give an integer"),
    "no size": (lambda folder: edit_raw(folder / "unet" / "config.json", sample_size=None), "sample_size is None"),
    "NaN in a config": (config_of("unet", norm_eps=float("nan")), "norm_eps holds nan"),
    "unknown block": (config_of("unet", down_block_types=["Nothing", "Nothing"]), r"no UNet2DModel can be built of it"),
    "words for blocks": (config_of("vqvae", decoder_block_out_channels="wide"), r"no AutoencoderDC can be built of it"),
    "what cannot run": (config_of("unet", norm_eps="small"), r"the denoiser of this config cannot run \(TypeError"),
    "another arithmetic": (config_of("unet", downsample_padding=7), r"the denoiser of this config cannot run"),
    "odd size": (config_of("unet", sample_size=7), "the denoiser of this config cannot run"),
    "latent channels": (config_of("vqvae", latent_channels=5), "has the shape"),
    "grey images": (config_of("vqvae", in_channels=1), "in_channels is 1; images have 3 channels"),
    "given channels": (config_of("unet", out_channels=5), "the denoiser gives 5 channels, and the latents have 4"),
    "scale": (config_of("vqvae", scaling_factor=-1.0), "scaling_factor is -1; give a number above 0"),
    "scale of 0": (config_of("vqvae", scaling_factor=0), "scaling_factor is 0; give a number above 0"),
    "scale of text": (config_of("vqvae", scaling_factor="large"), "scaling_factor is 'large'; give a finite number"),
    "NaN scale": (config_of("vqvae", scaling_factor=float("nan")), "scaling_factor (is|holds) nan"),
    "no betas at all": (
        text_of("scheduler/scheduler_config.json", '{"_class_name": "EDMEulerScheduler", "sigma_max": 80}'),
        "a EDMEulerScheduler says nothing of β",
    ),
    "a flow without times": (
        config_of("scheduler", prediction_type="flow_prediction"),
        "predicts a flow without use_flow_sigmas",
    ),
    "NaN betas": (config_of("scheduler", beta_start=float("nan")), "beta_start is nan; give a finite number"),
    "betas of text": (config_of("scheduler", beta_end="much"), "beta_end is 'much'; give a finite number"),
    "betas above 1": (config_of("scheduler", beta_end=2.0), r"must lie in \(0, 1\)"),
    "negative betas": (config_of("scheduler", beta_start=-0.1), r"must lie in \(0, 1\)"),
    "trained betas": (config_of("scheduler", trained_betas=[0.1, float("nan")]), r"must lie in \(0, 1\)"),
    "no betas": (config_of("scheduler", trained_betas=[]), "trained_betas must be a list"),
    "betas' kind": (config_of("scheduler", trained_betas="none"), "trained_betas must be a list"),
    "no signal": (config_of("scheduler", trained_betas=[0.9999] * 100), "leave no signal"),
    "steps": (config_of("scheduler", num_train_timesteps=-3), "num_train_timesteps is -3; give an integer in 1"),
    "many steps": (config_of("scheduler", num_train_timesteps=100_000), "num_train_timesteps is 100000"),
    "half steps": (config_of("scheduler", num_train_timesteps=10.5), r"num_train_timesteps is 10\.5"),
    "statistics": (text_of("latent_statistics.json", '{"mean": [0, 0], "std": [1, 1]}'), "mean must be a list of 4"),
    "zero std": (
        text_of("latent_statistics.json", '{"mean": [0, 0, 0, 0], "std": [1, 1, 0, 1]}'),
        "std must be above 0",
    ),
    "NaN mean": (
        text_of("latent_statistics.json", '{"mean": [0, NaN, 0, 0], "std": [1, 1, 1, 1]}'),
        "mean must be a list of 4 finite",
    ),
}


def edit_raw(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_models_are_refused_by_name(damage: str, tmp_path: Path):
    damaging, message = BROKEN[damage]
    damaging(save_pipeline(tmp_path, dc()))
    with pytest.raises(ConfigError, match=message):
        load_prior(str(tmp_path))


def lora(folder: Path) -> None:
    save_file({"unet.down.lora_A.weight": torch.zeros(1)}, folder / "pytorch_lora_weights.safetensors")


def lora_of_another_name(folder: Path) -> None:
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(1)}, folder / "style.safetensors")


def controlnet(folder: Path) -> None:
    ControlNetModel(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
                    down_block_types=("DownBlock2D",) * 2).save_pretrained(folder)  # fmt: skip


OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "LoRA": (lora, "a LoRA, which is no model by itself"),
    "LoRA file": (lora_of_another_name, r"style\.safetensors is a LoRA"),
    "adapter": (text_of("adapter_config.json", "{}"), "a LoRA, which is no model by itself"),
    "ControlNet": (controlnet, "a ControlNetModel, which steers another model"),
    "ControlNet file": (
        lambda folder: save_file({"control_model.zero": torch.zeros(1)}, folder / "c.safetensors"),
        "is a ControlNet",
    ),
    "single file": (
        lambda folder: save_file({"model.diffusion_model.input": torch.zeros(1)}, folder / "v1-5.safetensors"),
        r"v1-5\.safetensors is a single-file checkpoint; convert it once .*from_single_file\('v1-5\.safetensors'\)",
    ),
    "pickled single file": (text_of("v1-5.ckpt", b"x"), r"v1-5\.ckpt is a single-file checkpoint"),
    "autoencoder alone": (lambda folder: kl().save_pretrained(folder), r"one model alone \(AutoencoderKL\)"),
    "denoiser alone": (
        lambda folder: unet().save_pretrained(folder),
        r"one model alone \(UNet2DModel\) .* name the pip",
    ),
    "text encoder alone": (
        text_of("config.json", '{"architectures": ["CLIPTextModel"]}'),
        r"alone \(\['CLIPTextModel'\]\)",
    ),
    "nothing": (lambda folder: None, r"none of vqvae/config\.json"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_pipeline_is_called_by_its_name(kind: str, tmp_path: Path):
    make, message = OTHERS[kind]
    make(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_prior(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [("v1-5.safetensors", "is a single-file checkpoint"), ("notes.txt", "is a file; give `bundled`")],
)
def test_a_file_in_a_folders_place_is_called_by_its_name(name: str, message: str, tmp_path: Path):
    save_file({"model.diffusion_model.input": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ConfigError, match=message):
        load_prior(str(tmp_path / name))


def test_the_attention_of_old_checkpoints_opens(tmp_path: Path):
    """diffusers before 0.12 called its parts query, key, value and proj_attn; SD 1.5's own VAE still does."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            for new, old in names.items():
                if f".attentions.0.{new}." in name:
                    tensors[name.replace(new, old)] = tensors.pop(name)

    folder = save_pipeline(tmp_path, kl())
    change(folder / "vqvae" / WEIGHTS, rename)
    assert any(".query." in name for name in load_file(folder / "vqvae" / WEIGHTS))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    theirs = AutoencoderKL.from_pretrained(folder / "vqvae").eval()
    torch.testing.assert_close(
        load_prior(str(folder)).encode(x), theirs.encode(x).latent_dist.mode() * theirs.config.scaling_factor
    )


ENCODERS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "missing": (lambda tensors: tensors.pop("net.heads.0.bias"), r"the weights lack 1 tensor \(net\.heads\.0\.bias\)"),
    "strange": (lambda tensors: tensors.update(more=torch.zeros(1)), r"the weights hold 1 tensor \(more\)"),
    "NaN": (lambda tensors: tensors["net.heads.0.bias"].fill_(torch.nan), r"net\.heads\.0\.bias.* hold NaN"),
}


@pytest.mark.parametrize("damage", ENCODERS)
def test_severity_encoders_are_read_as_strictly(damage: str, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path / "prior", dc())))
    SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05).save_pretrained(tmp_path / "encoder")
    assert load_severity_encoder(str(tmp_path / "encoder")).sha256 == hash_weights(tmp_path / "encoder")
    edit, message = ENCODERS[damage]
    change(tmp_path / "encoder" / WEIGHTS, edit)
    with pytest.raises(ConfigError, match=message):
        load_severity_encoder(str(tmp_path / "encoder"))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A copy of the bundled prior: the checks of behaviour need trained networks."""
    return Path(shutil.copytree(bundled("prior"), tmp_path / "prior"))


def test_a_trained_prior_passes_the_check_of_its_networks(trained: Path):
    load_prior(str(trained), check=True)


def latents_of_a_fifth(folder: Path) -> None:
    path = folder / "latent_statistics.json"
    edit_json(path, std=[5 * value for value in json.loads(path.read_text())["std"]])


def halve_the_decoder(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if name.startswith("decoder."):
            tensors[name] /= 2


@pytest.mark.parametrize(
    ("damaging", "message"),
    [
        (
            latents_of_a_fifth,
            r"standard deviation of .* the latent scale is .*, and about 1\.\d+ would fit; correct scaling_factor",
        ),
        (
            config_of("scheduler", prediction_type="epsilon"),
            "prediction_type is epsilon, .* nearer to v_prediction",
        ),
        (config_of("scheduler", prediction_type="sample"), "prediction_type is sample, .* nearer to v_prediction"),
        (tensors_of("vqvae", halve_the_decoder), r"back with -?\d+\.\d dB"),
    ],
)
def test_networks_that_do_not_behave_as_their_configs_say_are_refused(
    damaging: Callable[[Path], None], message: str, trained: Path
):
    damaging(trained)
    load_prior(str(trained))  # nothing else shows it
    with pytest.raises(ConfigError, match=message):
        load_prior(str(trained), check=True)


@pytest.mark.parametrize("name", ["LDM, KL", "SD3"])
def test_random_weights_do_not_pass_the_check(name: str, tmp_path: Path):
    prior = load_prior(str(LAYOUTS[name](tmp_path)))
    with pytest.raises(ConfigError, match=r"gives a test picture back with"):
        check_prior(prior)


@pytest.mark.parametrize("side", [32, 33, 256])
def test_the_test_picture_looks_like_one(side: int):
    x = picture(side)
    assert x.shape == (1, 3, side, side)
    assert torch.equal(x, picture(side))
    assert x.abs().max() <= 1
    assert 0.2 < x.std() < 0.6
    assert (x[..., 1:] - x[..., :-1]).std() < 0.5 * x.std()
