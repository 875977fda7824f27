"""The files below a local folder, links followed; nothing that is there is left out in silence."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Identity = tuple[int, int]
_TIMES = 64  # links to one folder that are followed: links to folders of links would double at each


@dataclass(frozen=True)
class Entry:
    """A file below a listed folder or prefix; below a local folder whatever is no folder."""

    key: str  # its path relative to the folder or prefix
    size: int  # in bytes; 0 where it is no ordinary file, or cannot be asked
    regular: bool = True  # it can be opened without waiting: no pipe, socket, device or dead link
    # a link behind which files may be that are not found: it leads back to a folder above it, to the folder that is
    # kept `apart`, or, without a suffix in its name, nowhere
    hides: bool = False
    apart: bool = False  # a link to the folder that is kept apart, into it, or to one that holds it


@dataclass(frozen=True)
class Unreadable:
    """A folder that cannot be listed, by its path relative to the root, and why."""

    key: str
    why: str


def walk_folder(root: str, apart: str | None = None) -> Iterator[Entry | Unreadable]:
    """Everything below a folder, in no particular order; nothing where there is no such folder.

    A link to a folder is followed unless it leads back to a folder that contains it, or 64 links have led there
    already. The files of the folder `apart` are none of these, whichever link leads there, and whether it exists or
    not.
    """
    apart = apart and os.path.realpath(apart)
    try:
        above = tuple(_identity(os.stat(folder)) for folder in [root, *map(str, Path(os.path.realpath(root)).parents)])
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            yield Unreadable("", str(error.strerror))
        return
    folders: list[tuple[str, tuple[Identity, ...]]] = [("", above)]
    followed: Counter[Identity] = Counter()
    while folders:
        folder, above = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)  # which links are followed must not vary
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since
        except OSError as error:
            yield Unreadable(folder, str(error.strerror))
            continue
        for entry in listed:
            key = f"{folder}/{entry.name}" if folder else entry.name
            if apart and entry.is_symlink() and _related(os.path.realpath(entry.path), apart):
                yield Entry(key, 0, regular=False, hides=True, apart=True)
                continue
            try:
                status = entry.stat()
            except OSError as error:  # a dead link, a link to itself, or below a folder that may be listed only
                if entry.is_dir(follow_symlinks=False):
                    yield Unreadable(key, str(error.strerror))
                else:
                    yield Entry(key, 0, regular=False, hides=entry.is_symlink() and "." not in entry.name)
                continue
            if not entry.is_dir():
                yield Entry(key, status.st_size if entry.is_file() else 0, regular=entry.is_file())
            elif entry.is_symlink() and (_identity(status) in above or followed[_identity(status)] >= _TIMES):
                yield Entry(key, 0, regular=False, hides=True)
            else:
                followed[_identity(status)] += entry.is_symlink()
                folders.append((key, (*above, _identity(status))))


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _related(one: str, other: str) -> bool:
    """Whether two real paths are the same, or one lies below the other."""
    return os.path.commonpath([one, other]) in (one, other)
