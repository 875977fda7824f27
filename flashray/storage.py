"""The one place that turns a URI into a filesystem: local paths and s3:// prefixes.

Credentials, region and endpoint of object storage come from the usual AWS environment (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, …) of whichever process asks: a URI travels between processes, a
filesystem or a secret never does. Reads go through pyarrow; every write is one put of bytes that exist in full, so no
reader ever sees half an object.
"""

from __future__ import annotations

import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pyarrow import fs as pafs

from flashray.errors import ConfigError

CONNECT_TIMEOUT = 5  # seconds
REQUEST_TIMEOUT = 30
ATTEMPTS = 5
_TEMPORARY = ".flashray-"  # the name of a local file that is not whole yet starts so


@dataclass(frozen=True)
class Entry:
    """A file below a listed prefix: its path relative to the prefix, and its size in bytes."""

    key: str
    size: int


def normalise(uri: str) -> str:
    """An absolute local path or `s3://bucket/prefix`, without a trailing slash. ConfigError on any other scheme."""
    scheme, rest = _split(uri)
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not bucket or "@" in bucket or ":" in bucket:
            raise ConfigError(
                f"{redact(uri)}: give s3://bucket/prefix; endpoint and credentials come from the AWS environment"
            )
        prefix = prefix.strip("/")
        return f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
    return os.path.abspath(os.path.expanduser(rest))


def is_absolute(uri: str) -> bool:
    """Whether a place means the same in every process: a URI, or a path from the root."""
    scheme, rest = _split(uri)
    return scheme == "s3" or os.path.isabs(os.path.expanduser(rest))


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


def redact(uri: str | None) -> str | None:
    """The address without a user name and password."""
    return None if uri is None else re.sub(r"//[^/@\s]*@", "//***@", uri)


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem of a URI, and the path in it."""
    scheme, rest = _split(normalise(uri))
    return (_s3(), rest) if scheme == "s3" else (pafs.LocalFileSystem(), rest)


def read_bytes(uri: str) -> bytes:
    """The whole file or object. FileNotFoundError when there is none, OSError when it cannot be read."""
    if is_local(uri):
        return Path(normalise(uri)).read_bytes()
    files, path = filesystem(uri)
    with files.open_input_stream(path) as stream:
        return bytes(stream.read())


def put_bytes(uri: str, data: bytes) -> None:
    """Create or replace a file in one piece: readers see the old one or the new one."""
    if not is_local(uri):
        with _as_oserror(uri):
            _put_object(uri, data)
        return
    path = Path(normalise(uri))
    temporary = _write_temporary(path, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def create_if_absent(uri: str, data: bytes) -> bool:
    """Create a file only if there is none, whole and at once; whether what is there now is ours.

    Of several writers exactly one gets True. (Another writer's equal bytes also count as ours: a put whose answer was
    lost is retried by the client, and then finds its own object.)
    """
    if not is_local(uri):
        return _create_object_if_absent(uri, data)
    path = Path(normalise(uri))
    temporary = _write_temporary(path, data)
    try:
        os.link(temporary, path)  # unlike a rename, refuses to replace
    except FileExistsError:
        return path.read_bytes() == data
    finally:
        temporary.unlink(missing_ok=True)
    return True


def exists(uri: str) -> bool:
    """Whether there is a file or object of this name, or anything below it."""
    files, path = filesystem(uri)
    return files.get_file_info(path).type != pafs.FileType.NotFound


def list_files(uri: str) -> list[Entry]:
    """Every file below a folder or prefix, at any depth, sorted by key; nothing where it does not exist.

    Files that a killed writer left half-written are not listed.
    """
    return sorted(_walk(uri), key=lambda entry: entry.key)


def delete(uri: str) -> None:
    """Delete a file, or a folder or prefix with everything below it; nothing happens where there is none."""
    files, path = filesystem(uri)
    kind = files.get_file_info(path).type
    if kind == pafs.FileType.File:
        files.delete_file(path)
    elif kind == pafs.FileType.Directory:
        files.delete_dir(path)


def _walk(uri: str) -> Iterator[Entry]:
    files, root = filesystem(uri)
    if not is_local(uri):
        for info in files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)):
            if info.type == pafs.FileType.File:
                yield Entry(posixpath.relpath(info.path, root), info.size)
        return
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(_TEMPORARY) and os.path.isfile(path):
                yield Entry(Path(os.path.relpath(path, root)).as_posix(), os.path.getsize(path))


def _split(uri: str) -> tuple[str, str]:
    """(file or s3, the rest)."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", uri, re.DOTALL)
    if match is None:
        return "file", uri
    scheme, rest = match.groups()
    if scheme == "file":
        return "file", unquote(rest)
    if scheme != "s3":
        raise ConfigError(f"{redact(uri)}: {scheme}:// is not supported; give a folder or s3://bucket/prefix")
    return "s3", rest


def _write_temporary(path: Path, data: bytes) -> Path:
    """The bytes in a new file beside `path`, so that moving it there is one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_TEMPORARY + uuid.uuid4().hex)
    try:
        temporary.write_bytes(data)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _region() -> str | None:
    return (
        os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if _endpoint() else None)
    )


@lru_cache(maxsize=1)
def _s3() -> pafs.S3FileSystem:
    # the constructor reads credentials from the environment, but not the endpoint
    return pafs.S3FileSystem(
        endpoint_override=_endpoint(),
        region=_region(),
        connect_timeout=CONNECT_TIMEOUT,
        request_timeout=REQUEST_TIMEOUT,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


@lru_cache(maxsize=1)
def _s3_client() -> Any:
    """A boto3 client for writes: single-shot and conditional puts, which pyarrow does not have."""
    import boto3
    from botocore.config import Config

    settings = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=REQUEST_TIMEOUT,
        retries={"max_attempts": ATTEMPTS, "mode": "standard"},
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", endpoint_url=_endpoint(), region_name=_region(), config=settings)


def _put_object(uri: str, data: bytes, **conditions: str) -> None:
    bucket, _, key = _split(normalise(uri))[1].partition("/")
    _s3_client().put_object(Bucket=bucket, Key=key, Body=data, **conditions)


def _create_object_if_absent(uri: str, data: bytes) -> bool:
    from botocore.exceptions import ClientError

    with _as_oserror(uri):
        try:
            _put_object(uri, data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                raise
            return read_bytes(uri) == data
    return True


@contextmanager
def _as_oserror(uri: str) -> Iterator[None]:
    """The client's own errors as OSError, like every other failure of a filesystem."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"{uri}: {error}") from error
