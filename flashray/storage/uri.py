"""The one place that turns a URI into a filesystem: local paths, s3:// prefixes, and the other schemes of fsspec.

Credentials, region and endpoint of object storage come from the usual AWS environment (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, …) of whichever process asks, and so does how long it waits
(`s3.Limits`): a URI travels between processes, a filesystem or a secret never does. Reads go through pyarrow; every
write is one put of bytes that exist in full, so no reader ever sees half an object. (Other schemes than s3 are as good
at both as their fsspec filesystem.)
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import re
import shutil
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from pyarrow import fs as pafs

from flashray.errors import ConfigError
from flashray.storage import s3
from flashray.storage.local_walk import Entry, Unreadable, walk_folder
from flashray.storage.redaction import redact

T = TypeVar("T")
TEMPORARY = ".flashray-"  # the name of a local file that is not whole yet starts so
_PIECE = 2**24  # bytes of a file that is copied piece by piece
# what `os.link` fails with where there are no hard links; constants of Linux's renameat2
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1
_PART = 2**20  # bytes of a file that are copied at once
_SPECIAL = "it is no file but a pipe, a socket or a device"


class Unavailable(OSError):
    """The store itself does not answer, or not to these credentials: no word about the file that was asked for."""


@dataclass(frozen=True, order=True)
class Version:
    """A file below a listed prefix, and what its store calls the content that it has now: an ETag, or all it says."""

    key: str
    size: int
    version: str


@dataclass(frozen=True)
class Listing:
    """Everything below a folder or prefix."""

    entries: list[Entry]  # sorted by key; of a local folder also what is there and is no ordinary file
    unreadable: list[str]  # folders that cannot be listed, each with the reason


def normalise(uri: str) -> str:
    """An absolute local path or `scheme://bucket/prefix`, without a trailing slash. ConfigError on unknown schemes."""
    scheme, rest = _split(uri)
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket or "@" in bucket or ":" in bucket:
            raise ConfigError(
                f"{redact(uri)}: give s3://bucket/prefix; endpoint and credentials come from the AWS environment"
            )
        prefix = prefix.strip("/")
        return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
    if scheme != "file":
        if scheme not in fsspec.available_protocols():
            raise ConfigError(
                f"{redact(uri)}: {scheme}:// is not supported; give a folder, s3://bucket/prefix, or a scheme of fsspec"
            )
        return f"{scheme}://{rest.rstrip('/')}"
    return os.path.abspath(os.path.expanduser(rest))


def given(uri: str, what: str) -> str:
    """The normalised form of an address that a person gave; `what` it is, for messages.

    ConfigError when it is empty or no path, or holds a secret, which records and messages would keep.
    """
    if not uri:
        raise ConfigError(f"{what} is empty; give a folder or a URI")
    if re.search("[\0\ud800-\udfff]", uri):
        raise ConfigError(
            f"{what} {redact(uri)!r} holds NUL or bytes that are not UTF-8, and records cannot; rename it"
        )
    if not is_local(uri) and redact(uri) != uri:
        raise ConfigError(
            f"{what} {redact(uri)} holds a secret, and run records would keep it; give credentials in the environment "
            "(docs/object-storage.md)"
        )
    return normalise(uri)


def is_absolute(uri: str) -> bool:
    """Whether a place means the same in every process: a URI, or a path from the root."""
    scheme, rest = _split(uri)
    return scheme != "file" or os.path.isabs(os.path.expanduser(rest))


def is_local(uri: str) -> bool:
    """Whether it is a path of this machine (or of a filesystem mounted on it)."""
    return _split(uri)[0] == "file"


def is_inside(uri: str, parent: str) -> bool:
    """Whether `uri` is `parent` or lies below it; local symbolic links are followed."""
    if is_local(uri) != is_local(parent):
        return False
    one, other = ((os.path.realpath(p) if is_local(p) else p) for p in (normalise(uri), normalise(parent)))
    return one == other or one.startswith(other.rstrip("/") + "/")


def join(uri: str, *parts: str) -> str:
    """`uri/part/…`."""
    return "/".join([uri.rstrip("/"), *parts])


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a URI, and the path in it."""
    scheme, rest = _split(normalise(uri))
    if scheme == "file":
        return pafs.LocalFileSystem(), rest
    if scheme == "s3":
        return s3.filesystem(), rest
    other = _fsspec(scheme)
    return pafs.PyFileSystem(pafs.FSSpecHandler(other)), other._strip_protocol(uri)


def check(uri: str) -> None:
    """Ask the store of a URI once, before any work, whether it answers to this process.

    ConfigError when it does not, with the reason and the remedy.
    """
    scheme, rest = _split(normalise(uri))
    if scheme != "s3":
        filesystem(uri)
        return
    trouble = s3.trouble(rest)
    if trouble is not None:
        raise ConfigError(f"{uri} cannot be used: {redact(trouble)}")


def read_bytes(uri: str) -> bytes:
    """The whole file or object.

    FileNotFoundError when there is none, Unavailable when the store does not answer at all, else OSError.
    """
    return _read_local(normalise(uri)) if is_local(uri) else asked(uri, _read)


def read_range(uri: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file or object from `offset` on; nothing else of it is read.

    Raises what `read_bytes` raises, and OSError too where it ends before.
    """

    def read(uri: str) -> bytes:
        with opened(uri) as file:
            return bytes(file.read_at(length, offset))

    data = asked(uri, read)
    if len(data) < length:
        raise OSError(f"{uri} ends before byte {offset + length}")
    return data


def opened(uri: str) -> pa.NativeFile:
    """A file or object, open for reads at any place."""
    files, path = filesystem(uri)
    return files.open_input_file(path)


def asked(uri: str, read: Callable[[str], T]) -> T:
    """`read(uri)`; where it fails, the store itself is looked at, and if that is there the read is tried once more.

    Unavailable when the store does not answer at all; OSError when this one cannot be read.
    """
    try:
        return read(uri)
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_local(uri):
            raise
        try:
            check(uri)
        except ConfigError as trouble:
            raise Unavailable(str(trouble)) from error
        return read(uri)  # the store is there, perhaps again


def put_bytes(uri: str, data: bytes, modified_ns: int | None = None) -> None:
    """Create or replace a file in one piece: readers see the old one or the new one.

    `modified_ns` is the time of modification that a local file gets; stores set their own.
    """
    scheme, rest = _split(normalise(uri))
    if scheme == "s3":
        s3.put(rest, data)
        return
    if scheme != "file":
        put_other(uri, data, mode="overwrite")
        return
    path = Path(rest)
    temporary = write_temporary(path, data)
    try:
        if modified_ns is not None:
            os.utime(temporary, ns=(modified_ns, modified_ns))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def modified(uri: str) -> int | None:
    """When a local file was modified, in nanoseconds; None where it is gone, and for objects, whose stores do not say
    when a photo was taken up.
    """
    if not is_local(uri):
        return None
    try:
        return os.stat(normalise(uri)).st_mtime_ns
    except OSError:
        return None


def copy(source: str, target: str) -> int:
    """A file or object as a local file, in parts and at once there; from a local one with its times. Returns its bytes.

    OSError where it cannot be read or is no ordinary file, or the target cannot be written; Unavailable as `asked`.
    """
    assert is_local(target)
    refuse_special(source)
    path = Path(normalise(target))
    temporary = write_temporary(path, b"")

    def read(uri: str) -> None:
        with open(normalise(uri), "rb") if is_local(uri) else opened(uri) as there, open(temporary, "wb") as here:
            shutil.copyfileobj(there, here, _PART)

    try:
        asked(source, read)
        if is_local(source):
            shutil.copystat(normalise(source), temporary)
        size = temporary.stat().st_size
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
    return size


def refuse_special(uri: str) -> None:
    """OSError for local names that are no ordinary files, with what they are: reading a pipe would wait for ever."""
    if not is_local(uri):
        return
    path = normalise(uri)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            raise OSError("it is a link that leads nowhere, or to itself") from error
        raise
    if stat.S_ISDIR(mode):
        raise OSError("it is a folder, or a link to one above it, or to one that 64 links lead to")
    if not stat.S_ISREG(mode):
        raise OSError(_SPECIAL)


def create_if_absent(uri: str, data: bytes) -> bool:
    """Create a file only if there is none, whole and at once; whether what is there now is ours.

    Of several writers exactly one gets True. (Another writer's equal bytes also count as ours: a put whose answer was
    lost is retried by the client, and then finds its own object.)
    """
    if not is_local(uri):
        return _put_if_absent(uri, data) or read_bytes(uri) == data
    path = Path(normalise(uri))
    temporary = write_temporary(path, data)
    try:
        _name_if_free(temporary, path)
    except FileExistsError:
        return path.read_bytes() == data
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return True


def _name_if_free(temporary: Path, path: Path) -> None:
    """Give a file its name, or FileExistsError where another has it."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # filesystems without hard links, such as exFAT: a rename that refuses to replace
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if rename and rename(_AT_FDCWD, os.fsencode(temporary), _AT_FDCWD, os.fsencode(path), _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno() if rename else error.errno
        if code == errno.EEXIST:
            raise FileExistsError(code, os.strerror(code), str(path)) from error
        why = (
            "its filesystem has neither hard links nor a rename that keeps what is there; choose another for the output"
        )
        raise OSError(code, why, str(path)) from error


def creates_if_absent(uri: str) -> bool:
    """Whether the store keeps `create_if_absent`'s word: not all of them honour a conditional put.

    `uri` is of a file that nobody needs; it is gone afterwards.
    """
    scheme, rest = _split(normalise(uri))
    if scheme == "s3" and not s3.knows_conditions(rest):
        return False
    delete(uri)
    create_if_absent(uri, uuid.uuid4().bytes)
    honoured = not create_if_absent(uri, uuid.uuid4().bytes)
    delete(uri)
    return honoured


def exists(uri: str) -> bool:
    """Whether there is a file or object of this name, or anything below it."""
    files, path = filesystem(uri)
    return files.get_file_info(path).type != pafs.FileType.NotFound


def file_size(uri: str) -> int | None:
    """Bytes of a file or object; None where there is none of this name (a folder is none)."""
    files, path = filesystem(uri)
    info = files.get_file_info(path)
    return info.size if info.type == pafs.FileType.File else None


def list_files(uri: str) -> list[Entry]:
    """Every file below a folder or prefix, at any depth, sorted by key; nothing where it does not exist.

    Files that a killed writer left half-written are not listed.
    """
    return [entry for entry in list_everything(uri).entries if entry.regular]


def list_everything(uri: str, apart: str | None = None) -> Listing:
    """Every file below a folder or prefix as `list_files`, and whatever else is there.

    `apart` is a place that links below the folder must not lead to.
    """
    if not is_local(uri):
        return Listing(_objects(uri), [])
    found = list(walk_folder(normalise(uri), normalise(apart) if apart and is_local(apart) else None))
    entries = [one for one in found if isinstance(one, Entry) and not _is_temporary(one.key)]
    unreadable = [f"{one.key or '.'} ({one.why})" for one in found if isinstance(one, Unreadable)]
    return Listing(sorted(entries, key=lambda entry: entry.key), sorted(unreadable))


def _objects(uri: str) -> list[Entry]:
    """Every object below a prefix, sorted by key."""
    files, root = filesystem(uri)
    found = files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    # not a relative path: a key may have parts like `..`, which mean nothing in a store
    prefix = root.rstrip("/") + "/"
    objects = [Entry(info.path.removeprefix(prefix), info.size) for info in found if info.type == pafs.FileType.File]
    return sorted(objects, key=lambda entry: entry.key)


def versions(uri: str) -> list[Version]:
    """Every object below a prefix, at any depth, with its version; nothing where there is none."""
    scheme, rest = _split(normalise(uri))
    if scheme == "s3":
        return [Version(*one) for one in s3.versions(rest)]
    other = _fsspec(scheme)
    root = other._strip_protocol(uri).rstrip("/") + "/"
    found = other.find(root, detail=True)
    return [Version(path.removeprefix(root), info["size"], other.ukey(path)) for path, info in found.items()]


def download(uri: str, path: Path, size: int) -> None:
    """Write a file or object of so many bytes to a new local one, piece by piece, and on the disk.

    OSError when it cannot be read, or is not so large.
    """
    _make_folder(path.parent)
    files, place = filesystem(uri)
    with files.open_input_stream(place) as stream, path.open("xb") as file:
        shutil.copyfileobj(stream, file, _PIECE)
        written = file.tell()
    if written != size:
        raise OSError(f"{uri} gave {written} of {size} bytes")
    sync(path)


def half_written(uri: str) -> list[str]:
    """The places of the files below a local folder that a killed writer left half-written; objects never are."""
    if not is_local(uri):
        return []
    walk = os.walk(normalise(uri))
    return sorted(os.path.join(folder, name) for folder, _, names in walk for name in names if _is_temporary(name))


def delete(uri: str) -> None:
    """Delete a file, or a folder or prefix with everything below it; nothing happens where there is none."""
    files, path = filesystem(uri)
    kind = files.get_file_info(path).type
    if kind == pafs.FileType.File:
        files.delete_file(path)
    elif kind == pafs.FileType.Directory:
        files.delete_dir(path)


def _is_temporary(key: str) -> bool:
    return posixpath.basename(key).startswith(TEMPORARY)


def _split(uri: str) -> tuple[str, str]:
    """(the scheme, the rest); the scheme of a path is file."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", uri, re.DOTALL)
    if match is None:
        return "file", uri
    scheme, rest = match.groups()
    if scheme == "file":
        return "file", unquote(rest)
    return scheme.lower(), rest


def write_temporary(path: Path, data: bytes) -> Path:
    """The bytes on the disk in a new file beside `path`, so that moving it there is one atomic step."""
    _make_folder(path.parent)
    temporary = path.with_name(TEMPORARY + uuid.uuid4().hex)
    try:
        temporary.write_bytes(data)
        sync(temporary)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _make_folder(folder: Path) -> None:
    """The folder and those above it, each on the disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk and survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # filesystems that cannot sync folders
            raise
    finally:
        os.close(descriptor)


@lru_cache(maxsize=8)
def _fsspec(scheme: str) -> Any:
    """The fsspec filesystem of another scheme, configured as its package is."""
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(f"{scheme}:// needs a package that is not installed: {error}") from error
    except Exception as error:  # such as a server's name that it wants to be told
        raise ConfigError(f"{scheme}:// cannot be used ({error}); set it up in fsspec's configuration") from error


def _read_local(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a pipe, without waiting for a writer
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(_SPECIAL)
        return file.read()


def _read(uri: str) -> bytes:
    files, path = filesystem(uri)
    with files.open_input_stream(path) as stream:
        return bytes(stream.read())


def put_other(uri: str, data: bytes, mode: str) -> None:
    """A file of another scheme than local and s3."""
    other = _fsspec(_split(uri)[0])
    other.makedirs(posixpath.dirname(other._strip_protocol(uri)), exist_ok=True)
    other.pipe_file(uri, data, mode=mode)


def _put_if_absent(uri: str, data: bytes) -> bool:
    """Whether this call made the object; one that is there stays."""
    scheme, rest = _split(normalise(uri))
    if scheme == "s3":
        return s3.put_if_absent(rest, data)
    try:
        put_other(uri, data, mode="create")
    except FileExistsError:
        return False
    return True
