"""Where a model comes from: a folder, the hub, or an object store; each as a folder of this machine."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from flashray.errors import ConfigError

# What is fetched: configs, weights in safetensors, and tokenizers. Not the single-file checkpoints that lie beside some
# pipelines' folders; `*` also stands for `/`.
_WANTED = (
    "*.json",
    "*/*.safetensors",
    "diffusion_pytorch_model*.safetensors",
    "null_prompt.safetensors",
    "tokenizer*/*.txt",
    "tokenizer*/*.model",
)
_UNWANTED = ("safety_checker/*", "*.non_ema.*")  # large, and nothing reads them
_NAME = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
_REVISION = r"\w[\w./-]*"
_HUB = re.compile(rf"(?!.*\.\.)(?P<scheme>hf://)?(?P<name>{_NAME})(?:@(?P<revision>{_REVISION}))?", re.ASCII)


@dataclass(frozen=True)
class HubId:
    """A model on the hub: `owner/name`, and a branch, tag or commit; the main branch where `revision` is empty."""

    name: str
    revision: str = ""

    def __str__(self) -> str:
        return f"hf://{self.name}@{self.revision}" if self.revision else f"hf://{self.name}"

    @classmethod
    def of(cls, source: str) -> HubId | None:
        """The hub id that a source is; None for a path or another URI, ConfigError for an hf:// that is no such id.

        It is `hf://owner/name[@revision]`, or the same without the scheme where there is no such path.
        """
        found = _HUB.fullmatch(source)
        if source.startswith("hf://") and found is None:
            raise ConfigError(f"model {_shown(source)}: give hf://owner/name or hf://owner/name@revision")
        if found is None or (not found["scheme"] and Path(source).exists()):
            return None
        return cls(found["name"], found["revision"] or "")


def check_source(source: str, what: str) -> None:
    """ConfigError, with `what` the model is, for a source that cannot be one or holds a secret; nothing is opened."""
    if HubId.of(source) is None and "://" in source:
        from flashray import storage  # imported here, because the core does not need fsspec

        storage.given(source, what)


def pinned(source: str, what: str) -> str:
    """The source that stands for the same files from now on: a hub id with the commit that it means now.

    Other sources are returned as they are. What the hub gives is in this machine's cache afterwards. ConfigError as in
    `local_folder`.
    """
    model = HubId.of(source)
    return source if model is None else str(HubId(model.name, _snapshot(model, what).name))


def local_folder(source: str, what: str) -> Path:
    """The folder of a model on this machine; a path is returned as it is, whether it is there or not.

    `source` is a path, `hf://owner/name[@revision]`, `owner/name[@revision]`, or a URI such as s3://bucket/folder. A
    hub id's folder is the one of the hub's own cache. A URI's is copied once for all processes of the machine
    (`storage.cached_folder`). ConfigError if there is none at a hub id or URI, or if it cannot be read; the message
    says `what` the model is, why, and what to do.
    """
    model = HubId.of(source)
    if model is not None:
        return _snapshot(model, what)
    if "://" not in source:
        return Path(source)
    from flashray import storage

    uri = storage.given(source, what)
    try:
        return storage.cached_folder(uri, _wanted)
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {uri}: there is no model; name the folder that holds its config.json") from error
    except OSError as error:
        storage.check(uri)
        raise ConfigError(f"{what} {uri} cannot be read: {storage.redact(str(error))}") from error


def _wanted(key: str) -> bool:
    return any(fnmatchcase(key, one) for one in _WANTED) and not any(fnmatchcase(key, one) for one in _UNWANTED)


def _snapshot(model: HubId, what: str) -> Path:
    """The folder of a commit in the hub's cache, named after it, with all that is wanted."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # they would fill the logs of workers
    try:
        return Path(
            snapshot_download(
                model.name,
                revision=model.revision or None,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
            )
        )
    except Exception as error:  # the hub's client raises many kinds
        why = _why(model, error)
    # outside the block: the client's errors hold their requests, and these the token
    raise ConfigError(f"{what} {model}: {why}")


def _why(model: HubId, error: Exception) -> str:
    """What is wrong, and what to do about it."""
    from huggingface_hub import errors

    fetch = f"`hf download {model.name}{f' --revision {model.revision}' if model.revision else ''}`"
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"this machine's cache has a part of it, and the hub cannot be asked for the rest; run {fetch}"
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the hub was not asked, or did not answer
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set, and this machine's cache does not have it; run {fetch} where the hub can be "
            "reached, or name a folder"
        )
    token, again = "set HF_TOKEN on every machine, or run `hf auth login` there", "try again, or name a folder"
    if isinstance(error, errors.GatedRepoError):
        return f"the model is gated; accept its terms on its page at the hub, and {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has the model, and not the revision {model.revision}; give a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no such folder, and the hub has no such model or keeps it private; correct the name, or {token}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return (
            f"the hub refuses the token; {token}" if status in (401, 403) else f"the hub answers HTTP {status}; {again}"
        )
    said = _shown(str(error).strip().partition("\n")[0])
    return f"the hub does not give it ({type(error).__name__}: {said}); check the network and HF_ENDPOINT, {again}"


def _shown(text: str) -> str:
    from flashray import storage

    return storage.redact(text)
