"""Manifests as spreadsheets and table libraries write them: accepted where the meaning is clear, else exit code 2."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashray.errors import ConfigError
from flashray.pipeline.archive import read_archive
from flashray.pipeline.run_config import check
from flashray.recipe import DegradationConfig
from tests.support.runs import config_of

KEYS = ["7", "a.png"]
GOOD: dict[str, tuple[pa.Array, pa.Array]] = {
    "a pandas categorical": (pa.array(KEYS).dictionary_encode(), pa.array([1.5, 2.0])),
    "large strings": (pa.array(KEYS, pa.large_string()), pa.array([1.5, 2.0], pa.float32())),
    "views": (pa.array(KEYS, pa.string_view()), pa.array([1.5, 2.0], pa.float16())),
    "bytes": (pa.array([key.encode() for key in KEYS], pa.binary()), pa.array([1.5, 2.0])),
    "decimals": (pa.array(KEYS), pa.array([Decimal("1.50"), Decimal("2.00")])),
    "numbers as text": (pa.array(KEYS), pa.array(["1.5", "2"])),
    "numbers in a dictionary": (pa.array(KEYS), pa.array([1.5, 2.0]).dictionary_encode()),
}
BAD: dict[str, tuple[pa.Array, pa.Array]] = {
    "a key that is null": (pa.array(["a.png", None]), pa.array([1.5, 2.0])),
    "a key that is empty": (pa.array(["a.png", ""]), pa.array([1.5, 2.0])),
    "only nulls": (pa.nulls(2), pa.array([1.5, 2.0])),
    "a null in a dictionary": (pa.array(["a.png", None]).dictionary_encode(), pa.array([1.5, 2.0])),
    "keys twice in a dictionary": (pa.array(["a.png", "a.png"]).dictionary_encode(), pa.array([1.5, 2.0])),
    "decimal keys": (pa.array([Decimal("1.5"), Decimal("2.5")]), pa.array([1.5, 2.0])),
    "float keys": (pa.array([1.5, 2.5]), pa.array([1.5, 2.0])),
    "lists as keys": (pa.array([["a"], ["b"]]), pa.array([1.5, 2.0])),
    "dates as keys": (pa.array([datetime.date(2024, 1, 1)] * 2), pa.array([1.5, 2.0])),
    "bytes that are not UTF-8": (pa.array([b"\xff", b"a"], pa.binary()), pa.array([1.5, 2.0])),
    "text for numbers": (pa.array(KEYS), pa.array(["1.5", "strong"])),
    "lists for numbers": (pa.array(KEYS), pa.array([[1.5], [2.0]])),
    "dates for numbers": (pa.array(KEYS), pa.array([datetime.date(2024, 1, 1)] * 2)),
    "NaN": (pa.array(KEYS), pa.array([1.5, float("nan")])),
    "infinite": (pa.array(KEYS), pa.array([1.5, float("inf")])),
    "negative": (pa.array(KEYS), pa.array([1.5, -1.0])),
}


def listing(tmp_path: Path, manifest: Path, **values: Any) -> pa.Table:
    photos = tmp_path / "photos"
    photos.mkdir(exist_ok=True)
    (photos / "a.png").write_bytes(b"x")
    asked = {"manifest": str(manifest), "degradation": DegradationConfig()} | values
    return read_archive(check(config_of(photos, tmp_path / "out", **asked))).images


def written(tmp_path: Path, **columns: pa.Array) -> Path:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("how", GOOD)
def test_row_23_columns_whose_meaning_is_clear(tmp_path: Path, how: str) -> None:
    keys, values = GOOD[how]
    images = listing(tmp_path, written(tmp_path, key=keys, blur_std=values, noise_std=values))
    assert json.loads(images["given"].to_pylist()[0]) == {"blur_std": 2.0}
    assert images["noise_std"].to_pylist() == [2.0]


def test_row_23_integer_keys_are_names(tmp_path: Path) -> None:
    path = written(tmp_path, key=pa.array([7, 8]), blur_std=pa.array([1.5, 2.0]))
    with pytest.raises(ConfigError, match=r"names no image of the archive: its first key is '7', and .* 'a.png'"):
        listing(tmp_path, path)


@pytest.mark.parametrize("how", BAD)
def test_row_23_columns_that_mean_nothing(tmp_path: Path, how: str) -> None:
    keys, values = BAD[how]
    with pytest.raises(ConfigError, match=r"^manifest .*m\.parquet"):
        listing(tmp_path, written(tmp_path, key=keys, blur_std=values))


@pytest.mark.parametrize(
    "text",
    [
        b"key,key,blur_std\na.png,b.png,1\n",
        b"key,blur_std,blur_std\na.png,1,2\n",
        b"key,blur_std\n,1\n",
        b"key,blur_std\na.png,1,2\n",
        b"key,blur_std\n\xff\xfe,1\n",
        b"key,blur_std\na.png,true\n",
        b"key,blur_std\na.png,2024-01-01\n",
        b"\xebey,blur_std\na.png,1\n",  # the fuzzer's
        b"\0\0\0\0",
        b"PAR1",
        b"\x1f\x8b\x08\0",
        b"key;blur_std\na.png;1\n",
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet", ""])
def test_row_23_files_that_are_no_manifest(tmp_path: Path, text: bytes, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"^manifest "):
        listing(tmp_path, path)


def test_row_23_a_mark_of_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xef\xbb\xbfkey,blur_std\na.png,1.5\n")
    assert listing(tmp_path, path)["given"].to_pylist() == ['{"blur_std": 1.5}']


def test_row_15_masks_with_secrets_in_their_addresses(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("key,mask\na.png,https://me:hunter2@host/m.png\n")
    with pytest.raises(ConfigError, match="holds a secret") as caught:
        listing(tmp_path, path, degradation=DegradationConfig("random_inpainting"))
    assert "hunter2" not in str(caught.value)
