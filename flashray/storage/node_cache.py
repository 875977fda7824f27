"""Folders of object stores on this machine's disk, copied once for all of its processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flashray.errors import ConfigError
from flashray.storage.uri import Version, download, join, sync, versions

_ROOT = "FLASHRAY_CACHE"


def cached_folder(uri: str, wanted: Callable[[str], bool]) -> Path:
    """A copy of the files below a URI whose keys are wanted, in FLASHRAY_CACHE (default ~/.cache/flashray).

    The copy is named after the URI and each file's key, size and version in the store, so a folder that has changed is
    copied again beside the old copy. One process of the machine copies, and others wait for it. The copy gets its name
    when it is whole: what a killed process leaves is never opened, and the next one begins anew. FileNotFoundError
    where no wanted file is there; ConfigError where the cache cannot be written to; OSError where the store does not
    give a file, or the folder changes while it is copied.
    """
    files = _listed(uri, wanted)
    if not files:
        raise FileNotFoundError(f"{uri}: no such folder")
    root = _root()
    name = hashlib.sha256(repr((uri, files)).encode()).hexdigest()[:32]
    folder, part = root / name, root / f"{name}.part"
    if folder.is_dir():
        return folder
    with _locked(root / f"{name}.lock"):
        if folder.is_dir():
            return folder
        shutil.rmtree(part, ignore_errors=True)
        for file in files:
            download(join(uri, file.key), part / file.key, file.size)
        if _listed(uri, wanted) != files:
            raise OSError("the folder has changed while it was copied; try again")
        part.rename(folder)
        sync(root)
    return folder


def _listed(uri: str, wanted: Callable[[str], bool]) -> list[Version]:
    files = sorted(file for file in versions(uri) if wanted(file.key))
    for file in files:
        if "\0" in file.key or not {"", ".", ".."}.isdisjoint(file.key.split("/")):
            raise OSError(f"{file.key!r} is no name of a file; take it out of the folder")
    return files


def _root() -> Path:
    """The cache's folder for models, which is there and can be written to."""
    base = os.environ.get(_ROOT) or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "flashray")
    root = Path(base).expanduser() / "models"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the cache {root} cannot be made ({error}); name another folder by {_ROOT}") from error
    if not os.access(root, os.W_OK):
        raise ConfigError(f"the cache {root} cannot be written to; name another folder by {_ROOT}")
    return root


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel takes back from a process that ends, however that happens."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
