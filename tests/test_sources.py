"""Models from the hub, against a stand-in of its HTTP interface, and from object stores."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from flashray import storage
from flashray.checkpoints import load_saved
from flashray.errors import ConfigError
from flashray.prior import hash_weights, load_prior
from flashray.recipe import Recipe
from flashray.severity import SeverityEncoder, Start, load_severity_encoder
from flashray.sources import HubId, local_folder, pinned
from tests.support.hub_server import TOKEN, Hub, Repository, point_at, serving
from tests.support.models import dc, save_pipeline, severity_encoder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty hub, and an empty cache on this machine."""
    server.models, server.cut, server.asked = {}, None, []
    point_at(server, tmp_path / "cache", monkeypatch)
    return server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior's folder, with what else is found beside one."""
    folder = save_pipeline(tmp_path_factory.mktemp("prior"), dc())
    (folder / "safety_checker").mkdir()
    for name in ("README.md", "v1-5-pruned.safetensors", "run.py", "safety_checker/model.safetensors"):
        (folder / name).write_text("{}")
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.non_ema.safetensors"):
        (folder / "unet" / name).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def other(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prior with another latent scale, and files of the same sizes."""
    other = tmp_path_factory.mktemp("other") / "prior"
    shutil.copytree(folder, other)
    config = other / "vqvae" / "config.json"
    config.write_bytes(config.read_bytes().replace(b'"scaling_factor": 2.5', b'"scaling_factor": 3.0'))
    return other


@pytest.mark.parametrize(
    ("source", "name", "revision"),
    [
        ("hf://me/my.model-1", "me/my.model-1", ""),
        ("hf://me/model@v1.0", "me/model", "v1.0"),
        ("me/model", "me/model", ""),
        ("me/model@refs/pr/1", "me/model", "refs/pr/1"),
    ],
)
def test_a_hub_id_has_a_name_and_a_revision(source: str, name: str, revision: str):
    assert HubId.of(source) == HubId(name, revision)


@pytest.mark.parametrize(
    "source",
    ["", "bundled", "bundled:photo", "/a/b", "./a/b", "~/b", "a/b/c", "models:/name@champion", "s3://a/b", "a/../b"],
)
def test_other_sources_are_no_hub_ids(source: str):
    assert HubId.of(source) is None


def test_a_folder_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "model").mkdir(parents=True)
    assert local_folder("me/model", "prior") == Path("me/model")
    assert HubId.of("hf://me/model") == HubId("me/model")


@pytest.mark.parametrize("source", ["hf://model", "hf://me/model/unet", "hf://me/model@", "hf://me/model@../../x"])
def test_what_is_no_hub_id_is_refused_in_a_recipe(source: str):
    with pytest.raises(ConfigError, match="give hf://owner/name or hf://owner/name@revision"):
        Recipe(prior=source).check()


@pytest.mark.parametrize(
    "source",
    [f"hf://me:{TOKEN}@me/model", f"s3://key:{TOKEN}@bucket/a", f"https://host/a?X-Amz-Signature={TOKEN}"],
)
@pytest.mark.parametrize("kind", ["prior", "severity encoder"])
def test_secrets_in_sources_are_refused_and_not_repeated(source: str, kind: str):
    recipe = Recipe(prior=source) if kind == "prior" else Recipe(start=Start(severity_encoder=source))
    load = load_prior if kind == "prior" else load_severity_encoder
    for act in (recipe.check, lambda: load(source)):
        with pytest.raises(ConfigError) as caught:
            act()
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("source", ["me/prior", "hf://me/prior", "hf://me/prior@main"])
def test_a_prior_of_the_hub_is_the_folders(source: str, hub: Hub, folder: Path):
    commit = hub.put("me/prior", folder)
    assert load_prior(source).sha256 == hash_weights(folder)
    assert pinned(source, "prior") == f"hf://me/prior@{commit}"
    assert pinned(f"hf://me/prior@{commit}", "prior") == f"hf://me/prior@{commit}"


def test_only_configs_and_safetensors_that_are_read_are_fetched(hub: Hub, folder: Path):
    hub.put("me/prior", folder)
    load_prior("me/prior")
    assert hub.fetched() == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        f"unet/{WEIGHTS}",
        "vqvae/config.json",
        f"vqvae/{WEIGHTS}",
    }


def test_a_pinned_prior_stays_when_the_branch_moves_on(hub: Hub, folder: Path, other: Path):
    hub.put("me/prior", folder)
    source = pinned("me/prior", "prior")
    before = load_prior(source)
    hub.put("me/prior", other)
    assert load_prior("me/prior").sha256 != before.sha256
    hub.asked.clear()
    assert load_prior(source).sha256 == before.sha256
    assert hub.asked == []


def test_a_severity_encoder_of_the_hub_is_the_folders(hub: Hub, folder: Path, tmp_path: Path):
    encoder = severity_encoder(load_prior(str(folder)))
    encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoder" / "README.md").write_text("a card")
    hub.put("me/encoder", tmp_path / "encoder", "v1")
    loaded = load_severity_encoder("hf://me/encoder@v1")
    assert loaded.sha256 == load_severity_encoder(str(tmp_path / "encoder")).sha256
    assert hub.fetched() == {"config.json", WEIGHTS}


def gated(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.models["me/prior"].gated = True


def private(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.models["me/prior"].private = True


def absent(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.models.clear()


def moved(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.models["me/prior"].revisions.clear()


def offline(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def away(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


REFUSED: dict[str, tuple[Callable[[Hub, pytest.MonkeyPatch], None], str]] = {
    "gated": (gated, "the model is gated; accept its terms on its page at the hub, and set HF_TOKEN on every machine"),
    "private": (private, "the hub has no such model or keeps it private; correct the name, or set HF_TOKEN"),
    "absent": (absent, "there is no such folder, and the hub has no such model"),
    "no such revision": (moved, "the hub has the model, and not the revision main"),
    "offline": (
        offline,
        r"HF_HUB_OFFLINE is set, and this machine's cache does not have it; run `hf download me/prior",
    ),
    "away": (away, r"the hub does not give it \(ConnectError: .*\); check the network and HF_ENDPOINT"),
}


@pytest.mark.parametrize("trouble", REFUSED)
def test_what_the_hub_does_not_give_is_named_with_the_remedy(
    trouble: str, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.put("me/prior", folder)
    cause, message = REFUSED[trouble]
    cause(hub, monkeypatch)
    for load, kind in ((load_prior, "prior"), (load_severity_encoder, "severity encoder")):
        with pytest.raises(ConfigError, match=f"^{kind} hf://me/prior@main: .*{message}"):
            load("me/prior@main")


@pytest.mark.parametrize("trouble", [gated, private, offline, away])
def test_what_is_in_the_cache_needs_no_hub(
    trouble: Callable[[Hub, pytest.MonkeyPatch], None], hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    commit = hub.put("me/prior", folder)
    before = load_prior("me/prior")
    trouble(hub, monkeypatch)
    assert pinned("me/prior", "prior") == f"hf://me/prior@{commit}"
    assert load_prior("me/prior").sha256 == before.sha256


@pytest.mark.parametrize("trouble", [gated, private])
def test_a_token_opens_the_door_and_is_not_told(
    trouble: Callable[[Hub, pytest.MonkeyPatch], None], hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.put("me/prior", folder)
    trouble(hub, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load_prior("me/prior").sha256 == hash_weights(folder)
    hub.models["you/prior"] = Repository({"0" * 40: folder}, {})
    with pytest.raises(ConfigError) as caught:
        load_prior("you/prior@secret")
    # nor by what hangs on the error, which Ray would send to the driver
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_a_download_that_was_cut_short_does_not_open(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    hub.put("me/prior", folder)
    hub.cut = f"unet/{WEIGHTS}"
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # before it tries again
    with pytest.raises(ConfigError, match="the hub does not give it"):
        load_prior("me/prior")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="cache has a part of it, and the hub cannot be asked for the rest"):
        load_prior("me/prior")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.cut = None
    assert load_prior("me/prior").sha256 == hash_weights(folder)


@pytest.fixture(params=["s3", "fsspec"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own in an object store, and an empty cache on this machine."""
    monkeypatch.setenv("FLASHRAY_CACHE", str(tmp_path / "cache"))
    return (
        f"memory://{tmp_path.name}" if request.param == "fsspec" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    )


def upload(folder: Path, uri: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.put_bytes(storage.join(uri, path.relative_to(folder).as_posix()), path.read_bytes())
    return uri


def cached(tmp_path: Path) -> list[Path]:
    """The copies in the cache."""
    return sorted(path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir())


def test_a_prior_and_an_encoder_of_an_object_store_are_the_folders(bucket: str, folder: Path, tmp_path: Path):
    severity_encoder(load_prior(str(folder))).save_pretrained(tmp_path / "encoder")
    upload(folder, f"{bucket}/prior")
    upload(tmp_path / "encoder", f"{bucket}/encoder")
    for _ in range(2):
        assert load_prior(f"{bucket}/prior/").sha256 == hash_weights(folder)
        encoder = load_saved(SeverityEncoder, f"{bucket}/encoder", "cpu", kind="encoder", room="severity", job="")
        assert encoder.sha256 == hash_weights(tmp_path / "encoder")
    names = {path.name for copy in cached(tmp_path) for path in copy.rglob("*") if path.is_file()}
    assert len(cached(tmp_path)) == 2
    assert names == {"model_index.json", "scheduler_config.json", "config.json", WEIGHTS}


def test_a_folder_that_has_changed_is_another_copy(bucket: str, folder: Path, other: Path, tmp_path: Path):
    source = upload(folder, f"{bucket}/prior")
    before = load_prior(source)
    upload(other, source)
    assert load_prior(source).sha256 == hash_weights(other) != before.sha256
    assert len(cached(tmp_path)) == 2


def test_where_there_is_no_model_the_source_is_named(bucket: str):
    with pytest.raises(ConfigError, match=rf"^prior {bucket}/nothing: there is no model"):
        load_prior(f"{bucket}/nothing")


def test_a_missing_bucket_is_named(s3: str):
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket/a cannot be used: .* has no bucket no-such-bucket"):
        load_prior("s3://no-such-bucket/a")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match=r"nonsense:// is not supported"):
        load_prior("nonsense://a/b")


def test_the_cache_has_to_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLASHRAY_CACHE", str(tmp_path / "file"))
    source = upload(folder, f"memory://{tmp_path.name}/prior")
    with pytest.raises(ConfigError, match=r"cannot be made .*; name another folder by FLASHRAY_CACHE"):
        load_prior(source)
