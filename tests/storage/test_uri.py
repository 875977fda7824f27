"""Storage: the same behaviour on a folder and on a real S3 server."""

from __future__ import annotations

import errno
import os
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flashray.errors import ConfigError
from flashray.storage import uri as storage
from flashray.storage.s3 import forget, knows_conditions, limit, put, put_if_absent


@pytest.fixture(params=["local", "s3", "fsspec"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    if request.param == "fsspec":
        return f"memory://{tmp_path}"
    return storage.join(request.getfixturevalue("s3"), tmp_path.name)


def test_put_read_replace(root: str) -> None:
    uri = storage.join(root, "più foto", "a b é ключ%20.png")
    storage.put_bytes(uri, b"one")
    storage.put_bytes(uri, b"another")
    assert storage.read_bytes(uri) == b"another"
    assert storage.exists(uri)
    assert storage.exists(root)
    assert [entry.key for entry in storage.list_files(root)] == ["più foto/a b é ключ%20.png"]


def test_what_is_not_there(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "absent"))
    assert not storage.exists(storage.join(root, "absent"))
    assert storage.list_files(storage.join(root, "absent")) == []
    storage.delete(storage.join(root, "absent"))


def test_listing_is_sorted_with_sizes_at_any_depth(root: str) -> None:
    for key in ("b/2", "a", "b/1", "b/c/d/3"):
        storage.put_bytes(storage.join(root, key), key.encode())
    assert storage.list_files(root) == [storage.Entry(key, len(key)) for key in ("a", "b/1", "b/2", "b/c/d/3")]


def test_delete_takes_all_below(root: str) -> None:
    for key in ("keep", "drop/1", "drop/2/3"):
        storage.put_bytes(storage.join(root, key), b".")
    storage.delete(storage.join(root, "drop"))
    assert [entry.key for entry in storage.list_files(root)] == ["keep"]
    storage.delete(storage.join(root, "keep"))
    assert storage.list_files(root) == []


def test_create_if_absent_never_replaces(root: str) -> None:
    uri = storage.join(root, "commits", "unit")
    assert storage.create_if_absent(uri, b"mine")
    assert not storage.create_if_absent(uri, b"yours")
    assert storage.create_if_absent(uri, b"mine")  # the same bytes are our own lost answer
    assert storage.read_bytes(uri) == b"mine"


def test_create_if_absent_has_one_winner(root: str) -> None:
    for trial in range(5):
        uri = storage.join(root, f"race-{trial}")
        bodies = [f"writer {i}".encode() * 1000 for i in range(12)]
        with ThreadPoolExecutor(len(bodies)) as writers:
            won = list(writers.map(lambda body, uri=uri: storage.create_if_absent(uri, body), bodies))
        assert sum(won) == 1
        assert storage.read_bytes(uri) == bodies[won.index(True)]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_a_filesystem_without_hard_links_has_one_winner_too(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    file = str(tmp_path / "new")
    assert storage.create_if_absent(file, b"first")
    assert not storage.create_if_absent(file, b"second")
    assert storage.create_if_absent(file, b"first")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_half_written_files_are_not_listed(tmp_path: Path) -> None:
    storage.put_bytes(str(tmp_path / "whole"), b"x")
    left_over = storage.write_temporary(tmp_path / "half", b"x")  # as a killed writer leaves it
    assert left_over.exists()
    assert [entry.key for entry in storage.list_files(str(tmp_path))] == ["whole"]


def test_put_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "folder" / "child").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        storage.put_bytes(str(tmp_path / "folder"), b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_places() -> None:
    assert storage.normalise("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert storage.normalise("s3://bucket") == "s3://bucket"
    assert storage.normalise("file:///data/my%20photos") == "/data/my photos"
    assert storage.normalise("photos/") == os.path.abspath("photos")
    assert storage.join("s3://bucket/a", "b", "c d") == "s3://bucket/a/b/c d"
    assert storage.is_absolute("/data")
    assert storage.is_absolute("s3://bucket")
    assert not storage.is_absolute("photos")


@pytest.mark.parametrize("uri", ["nonsense://bucket/a", "s3://", "s3://key:secret@bucket/a"])
def test_places_that_are_none(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        storage.check(uri)
    assert "secret" not in str(caught.value)
    assert "s3://bucket/prefix" in str(caught.value)


def test_a_scheme_whose_package_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"gs:// needs a package that is not installed.*gcsfs"):
        storage.check("gs://bucket/a")


def test_inside(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert storage.is_inside(f"{tmp_path}/a/b", f"{tmp_path}/a")
    assert storage.is_inside(f"{tmp_path}/a/", f"{tmp_path}/a")
    assert storage.is_inside(f"{tmp_path}/link/b", f"{tmp_path}/a")
    assert not storage.is_inside(f"{tmp_path}/ab", f"{tmp_path}/a")
    assert storage.is_inside("s3://bucket/a/b", "s3://bucket/a")
    assert not storage.is_inside("s3://bucket/ab", "s3://bucket/a")
    assert not storage.is_inside(str(tmp_path), "s3://bucket")


def test_no_secret_travels(s3: str) -> None:
    storage.read_bytes(storage.join(s3, "probe"))
    assert b"flashray-secret" not in pickle.dumps((storage.read_bytes, storage.put_bytes, s3))


def test_errors_of_the_store_are_oserrors(s3: str) -> None:
    for write in (storage.put_bytes, storage.create_if_absent):
        with pytest.raises(OSError, match="no-such-bucket"):
            write("s3://no-such-bucket/key", b"x")


@pytest.fixture
def anew(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process with an environment of its own: the clients are made when they are first asked for."""
    forget()
    monkeypatch.setenv("FLASHRAY_S3_ATTEMPTS", "1")
    yield monkeypatch
    forget()


@pytest.mark.parametrize(
    ("environment", "bucket", "words"),
    [
        ({}, "no-such-bucket", "has no bucket no-such-bucket; create it, or correct its name"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, "flashray-test", "refuses the credentials (SignatureDoesNotMatch)"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "flashray-test", "refuses the credentials (InvalidAccessKeyId)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "flashray-test", "http://127.0.0.1:9 does not answer"),
    ],
)
def test_what_is_wrong_with_a_store_is_named(
    anew: pytest.MonkeyPatch, environment: dict[str, str], bucket: str, words: str
) -> None:
    for name, value in environment.items():
        anew.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        storage.check(f"s3://{bucket}/a/b")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_store_that_is_away_says_nothing_of_its_files(anew: pytest.MonkeyPatch, s3: str) -> None:
    storage.check(s3)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{s3}/absent")
    forget()
    anew.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(storage.Unavailable, match="does not answer"):
        storage.read_bytes(f"{s3}/absent")


def test_how_long_to_wait_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHRAY_S3_REQUEST_TIMEOUT", "2.5")
    monkeypatch.setenv("FLASHRAY_S3_ATTEMPTS", "2")
    assert (limit("CONNECT_TIMEOUT"), limit("REQUEST_TIMEOUT"), limit("ATTEMPTS")) == (5.0, 2.5, 2)
    for wrong in ("-1", "soon", "0", "2.5"):
        monkeypatch.setenv("FLASHRAY_S3_ATTEMPTS", wrong)
        with pytest.raises(ConfigError, match=f"FLASHRAY_S3_ATTEMPTS is '{wrong}'; give a positive number"):
            limit("ATTEMPTS")


@pytest.mark.parametrize("name", ["ReadTimeoutError", "ConnectionClosedError", "EndpointConnectionError"])
def test_a_server_that_does_not_answer_is_an_oserror(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the client's errors have an answer that is None, others have none at all."""
    import botocore.exceptions

    kind = getattr(botocore.exceptions, name)

    class Client:
        def put_object(self, **_: Any) -> None:
            raise kind(endpoint_url="http://x", error="gone")

    monkeypatch.setattr("flashray.storage.s3._client", Client)
    for attempt in (put, put_if_absent):
        with pytest.raises(OSError, match="s3://bucket/key"):
            attempt("bucket/key", b"")
    with pytest.raises(OSError, match="s3://bucket/key"):
        knows_conditions("bucket/key")


def test_a_put_that_meets_another_one_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    answers = [409, 409, None]

    def conflict(place: str, data: bytes, **_: str) -> None:
        if status := answers.pop(0):
            answer = {"Error": {"Code": "Conflict"}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise OSError(place) from ClientError(answer, "PutObject")

    monkeypatch.setattr("flashray.storage.s3.put", conflict)
    assert put_if_absent("bucket/key", b"")
    assert answers == []


def test_conditional_puts_are_tried_out(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.creates_if_absent(storage.join(root, "probe"))
    assert storage.list_files(root) == []
    # a store that ignores the condition, as some do
    put_other = storage.put_other
    monkeypatch.setattr("flashray.storage.s3.put", lambda place, data, **conditions: put(place, data))
    monkeypatch.setattr(storage, "put_other", lambda uri, data, mode: put_other(uri, data, "overwrite"))
    assert storage.creates_if_absent(storage.join(root, "probe")) == storage.is_local(root)


def test_a_server_that_knows_no_conditions(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers 501; then a look before the put has to do."""
    from botocore.exceptions import ClientError

    def refuse(place: str, data: bytes, **conditions: str) -> None:
        if not conditions:
            return put(place, data)
        answer = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
        raise OSError(place) from ClientError(answer, "PutObject")

    monkeypatch.setattr("flashray.storage.s3.put", refuse)
    assert not storage.creates_if_absent(storage.join(s3, "probe")), "the run warns of two drivers"
    uri = storage.join(s3, "no conditions")
    assert storage.create_if_absent(uri, b"mine")
    assert not storage.create_if_absent(uri, b"yours")
    assert storage.read_bytes(uri) == b"mine"
