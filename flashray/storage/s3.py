"""S3 as `storage` uses it: pyarrow's filesystem for reads, boto3 for what it cannot do: single-shot, conditional puts.

A place is `bucket/key`, as pyarrow writes it. Credentials, region, endpoint and limits are those of the process's
environment when it first asks.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pyarrow import fs as pafs

from flashray.errors import ConfigError

# How long a process waits for a server; FLASHRAY_S3_<NAME> of its environment replaces each
CONNECT_TIMEOUT = 5.0  # seconds until a connection stands
REQUEST_TIMEOUT = 30.0  # seconds without a byte of an answer
ATTEMPTS = 6  # how often a request is made before it fails, with growing pauses
_CONFLICTS = 4  # how often a put is made that meets another one of the same object


def limit(name: str) -> Any:
    """The limit of this name, from the environment where it is there; ConfigError when that is no positive number."""
    default = globals()[name]
    text = os.environ.get(f"FLASHRAY_S3_{name}", str(default))
    try:
        value = type(default)(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise ConfigError(f"FLASHRAY_S3_{name} is {text!r}; give a positive number")
    return value


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _region() -> str | None:
    return (
        os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if _endpoint() else None)
    )


@lru_cache(maxsize=1)
def filesystem() -> pafs.S3FileSystem:
    """The filesystem of this process."""
    # the constructor reads credentials from the environment, but not the endpoint
    return pafs.S3FileSystem(
        endpoint_override=_endpoint(),
        region=_region(),
        connect_timeout=limit("CONNECT_TIMEOUT"),
        request_timeout=limit("REQUEST_TIMEOUT"),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=limit("ATTEMPTS")),
    )


@lru_cache(maxsize=1)
def _client() -> Any:
    import boto3
    from botocore.config import Config

    settings = Config(
        connect_timeout=limit("CONNECT_TIMEOUT"),
        read_timeout=limit("REQUEST_TIMEOUT"),
        retries={"total_max_attempts": limit("ATTEMPTS"), "mode": "standard"},
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", endpoint_url=_endpoint(), region_name=_region(), config=settings)


def forget() -> None:
    """Make filesystem and client anew when they are next asked for: the environment names another server."""
    filesystem.cache_clear()
    _client.cache_clear()


def put(place: str, data: bytes, **conditions: str) -> None:
    """Create or replace an object in one request; OSError when the server does not take it."""
    bucket, _, key = place.partition("/")
    with _as_oserror(place):
        _client().put_object(Bucket=bucket, Key=key, Body=data, **conditions)


def put_if_absent(place: str, data: bytes) -> bool:
    """Create an object only if there is none; whether this call did. OSError as for `put`."""
    for attempt in range(_CONFLICTS):
        try:
            put(place, data, IfNoneMatch="*")
        except OSError as error:
            status = _status(error)
            if status == 501:  # a server that knows no conditions
                return _put_unless_there(place, data)
            if status == 409:  # another put of it is under way, and may fail
                time.sleep(0.1 * (attempt + 1))
                continue
            if status != 412:
                raise
            return False
        return True
    return False


def knows_conditions(place: str) -> bool:
    """Whether the server takes a conditional put at all; an object may be there afterwards."""
    try:
        put(place, b"", IfNoneMatch="*")
    except OSError as error:
        if _status(error) not in (409, 412, 501):
            raise
        return _status(error) != 501
    return True


def _status(error: OSError) -> int | None:
    return _answer(error.__cause__).get("ResponseMetadata", {}).get("HTTPStatusCode")


def _answer(error: BaseException | None) -> dict[str, Any]:
    """The server's answer; empty where it did not answer (then botocore's attribute is missing, or None)."""
    return getattr(error, "response", None) or {}


def _put_unless_there(place: str, data: bytes) -> bool:
    """As good as a server without conditional puts can do; two writers at once may both win."""
    if filesystem().get_file_info(place).type != pafs.FileType.NotFound:
        return False
    put(place, data)
    return True


def versions(place: str) -> Iterator[tuple[str, int, str]]:
    """(The key below a prefix, bytes, ETag) of every object there; OSError when the server does not answer."""
    bucket, _, prefix = place.partition("/")
    prefix = prefix and f"{prefix}/"
    with _as_oserror(place):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for one in page.get("Contents", []):
                if not one["Key"].endswith("/"):  # what some tools make for an empty folder
                    yield one["Key"].removeprefix(prefix), one["Size"], one["ETag"]


def trouble(place: str) -> str | None:
    """What is wrong with the server, or with the bucket, and what to do about it; None where it answers."""
    bucket, _, key = place.partition("/")
    try:
        _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    except _client_errors() as error:
        return _reason(error, bucket)
    return None


def _reason(error: Exception, bucket: str) -> str:
    from botocore.exceptions import ClientError, NoCredentialsError

    server = f"the endpoint {_endpoint()}" if _endpoint() else "the S3 service of the AWS environment"
    if isinstance(error, NoCredentialsError):
        return "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, on every machine"
    if not isinstance(error, ClientError):
        return f"{server} does not answer ({error}); check AWS_ENDPOINT_URL and the network"
    code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return f"{server} has no bucket {bucket}; create it, or correct its name"
    if status in (401, 403):
        return f"{server} refuses the credentials ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE"
    return f"{server} answers {code} ({status})"


@contextmanager
def _as_oserror(place: str) -> Iterator[None]:
    """The client's own errors as OSError, like every other failure of a filesystem."""
    try:
        yield
    except _client_errors() as error:
        code = _answer(error).get("Error", {}).get("Code")
        if code == "KeyTooLongError":
            raise OSError(errno.ENAMETOOLONG, "an object's key has at most 1024 bytes", f"s3://{place}") from error
        raise OSError(f"s3://{place}: {error}") from error


def _client_errors() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError
