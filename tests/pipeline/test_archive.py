"""The listing: what counts as an image, what a manifest adds, and what changed since."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashray.errors import ConfigError
from flashray.pipeline.archive import LISTING, differences, limited, listing_hash, read_archive
from flashray.pipeline.load import read_file
from flashray.pipeline.outputs import output_names
from flashray.pipeline.run_config import RunConfig
from flashray.recipe import DegradationConfig
from tests.support.runs import config_of

FIXED = DegradationConfig(settings={"std": [1.0, 1.0]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for name in ("b.png", "a b.JPG", "sub dir/ключ é.webp", "a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * len(name))
    return folder


def config(folder: Path, **values: Any) -> RunConfig:
    return config_of(**{"archive": str(folder), "output": "/out", "measurement": "simulated"} | values)


def test_sorted_keys_uris_and_sizes(folder: Path) -> None:
    listing = read_archive(config(folder)).images
    assert listing.schema == LISTING
    assert listing["key"].to_pylist() == ["a b.JPG", "a.png", "b.png", "sub dir/ключ é.webp"]
    assert listing["index"].to_pylist() == [0, 1, 2, 3]
    assert listing["uri"].to_pylist()[3] == f"{folder}/sub dir/ключ é.webp"
    assert listing["size"].to_pylist()[0] == len("a b.JPG")
    assert listing["given"].null_count == 4


def test_a_file_larger_than_its_pixels_can_need_is_not_read(folder: Path) -> None:
    os.truncate(folder / "a.png", 16 * 10**6 + 2**26)
    os.truncate(folder / "b.png", 16 * 10**6 + 2**26 + 1)
    refused = read_archive(config(folder, max_megapixels=1)).images["refused"].to_pylist()
    assert refused[2] == "its 83 MB are more than an image needs; the limit is 1 megapixels (--max-megapixels)"
    assert [refused[n] for n in (0, 1, 3)] == [None] * 3
    assert read_archive(config(folder)).images["refused"].null_count == 4


def test_limit_takes_the_first(folder: Path) -> None:
    assert read_archive(config(folder, limit=2)).images["key"].to_pylist() == ["a b.JPG", "a.png"]


def test_other_files_are_left_out_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("notes.txt", ".hidden.png", ".thumbnails/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert len(read_archive(config(folder)).images) == 4
    assert "3 files of the archive do not have an image's name (2 hidden, 1 .txt) and are left out" in caplog.text


def test_a_name_that_is_not_utf8_keeps_its_row(folder: Path) -> None:
    (Path(folder) / b"caf\xe9.png".decode(errors="surrogateescape")).write_bytes(b"x")
    assert "caf\\xe9.png" in read_archive(config(folder)).images["key"].to_pylist()


def test_two_names_that_differ_only_in_what_is_not_utf8(folder: Path) -> None:
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        (Path(folder) / name.decode(errors="surrogateescape")).write_bytes(b"x")
    keys = read_archive(config(folder)).images["key"].to_pylist()
    assert {"caf\\xe9.png", "caf\\xe8.png"} <= set(keys)
    (folder / "caf\\xe9.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match="two files of the name"):
        read_archive(config(folder))


def test_nothing_is_hidden(folder: Path) -> None:
    """Each has a row, and reading it says what it is instead of waiting."""
    os.mkfifo(folder / "pipe.png")
    (folder / "dead.jpg").symlink_to(folder / "absent.jpg")
    (folder / "old disk").symlink_to("/nowhere/at/all")
    (folder / "loop").symlink_to(folder)
    (folder / "text").symlink_to(folder / "absent.txt")
    (folder / b"caf\xe9.png".decode(errors="surrogateescape")).write_bytes(b"x")
    (folder / "phone.heic").write_bytes(b"x")
    listing = read_archive(config(folder)).images
    errors = {
        key: read_file(uri).error for key, uri in zip(*(listing[n].to_pylist() for n in ("key", "uri")), strict=True)
    }
    assert {key: error for key, error in errors.items() if error is not None} == {
        "pipe.png": "it cannot be read: it is no file but a pipe, a socket or a device",
        "dead.jpg": "it cannot be read: it is a link that leads nowhere, or to itself",
        "old disk": "it cannot be read: it is a link that leads nowhere, or to itself",
        "text": "it cannot be read: it is a link that leads nowhere, or to itself",
        "loop": "it cannot be read: it is a folder, or a link to one above it, or to one that 64 links lead to",
        "caf\\xe9.png": "the file is no longer there, or its name is not valid UTF-8",
    }
    assert "phone.heic" in errors


def test_a_folder_that_cannot_be_read_stops_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("sub dir"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"sub dir \(Permission denied\); correct their.*--skip-unreadable"):
        read_archive(config(folder))
    found = read_archive(config(folder, skip_unreadable=True))
    assert found.unreadable == ["sub dir (Permission denied)"]
    assert found.images["key"].to_pylist() == ["a b.JPG", "a.png", "b.png"]


def test_missing_and_empty_archives(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_archive(config(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no images"):
        read_archive(config(tmp_path / "empty"))


def test_an_archive_on_s3(s3: str, folder: Path) -> None:
    from flashray import storage

    for path in folder.rglob("*.*"):
        storage.put_bytes(storage.join(s3, "photos", str(path.relative_to(folder))), path.read_bytes())
    there = read_archive(config_of(archive=f"{s3}/photos", output="/out", measurement="simulated")).images
    here = read_archive(config(folder)).images
    assert there.drop(["uri"]) == here.drop(["uri"])
    assert there["uri"].to_pylist()[3] == f"{s3}/photos/sub dir/ключ é.webp"


def test_a_manifest_gives_parameters_and_noise(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text('key,blur_std,noise_std,remark\nb.png,1.5,0.02,x\n"a b.JPG",2.5,0.03,y\nelsewhere.png,9,9,z\n')
    listing = read_archive(config(folder, measurement="observed", manifest=str(manifest))).images
    assert listing["given"].to_pylist() == ['{"blur_std": 2.5}', None, '{"blur_std": 1.5}', None]
    assert listing["noise_std"].to_pylist() == [0.03, None, 0.02, None]

    table = pa.table({"key": ["a.png"], "blur_std": pa.array([2], pa.int32())})
    pq.write_table(table, tmp_path / "manifest.parquet")
    listing = read_archive(config(folder, measurement="observed", manifest=str(tmp_path / "manifest.parquet"))).images
    assert listing["given"].to_pylist()[1] == '{"blur_std": 2}'
    assert listing["noise_std"].null_count == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key,std\na.png,1\n", "blur_std"),
        ("name,blur_std\na.png,1\n", "no column key"),
        ("key,blur_std\na.png,1\na.png,2\n", "more than once"),
        ("key,blur_std\na.png,-1\n", "blur_std"),
        ("key,blur_std\na.png,strong\n", "not a column of numbers"),
        ("key,blur_std,noise_std\na.png,1,-0.5\n", "noise_std"),
        ("", "neither Parquet nor CSV"),
    ],
)
def test_a_manifest_that_does_not_fit(folder: Path, tmp_path: Path, text: str, words: str) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_archive(config(folder, measurement="observed", manifest=str(manifest)))


def test_observed_measurements_need_what_the_recipe_leaves_open(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"blur_std.*--manifest"):
        read_archive(config(folder, measurement="observed"))
    assert len(read_archive(config(folder, measurement="observed", degradation=FIXED)).images) == 4
    ranged = DegradationConfig(settings={"std": [1.0, 1.0]}, noise_std=[0.01, 0.1])
    with pytest.raises(ConfigError, match="noise_std"):
        read_archive(config(folder, measurement="observed", degradation=ranged))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_archive(config(folder, measurement="observed", manifest=str(tmp_path / "absent.csv")))


def test_differences_are_named(folder: Path) -> None:
    before = read_archive(config(folder)).images
    assert differences(before, before) == {"added": [], "removed": [], "changed": []}
    (folder / "new.png").write_bytes(b"x")
    (folder / "b.png").write_bytes(b"longer than before")
    (folder / "a.png").unlink()
    after = read_archive(config(folder)).images
    assert differences(before, after) == {"added": ["new.png"], "removed": ["a.png"], "changed": ["b.png"]}
    assert listing_hash(before) != listing_hash(after)


def test_the_hash_of_loose_images_is_that_of_earlier_versions() -> None:
    """Runs under way would be listed anew. Where the archive lies does not count."""
    row = {"key": "a.png", "size": 1, "given": '{"blur_std": 1}', "noise_std": 0.5}
    hashes = {listing_hash(pa.Table.from_pylist([row | {"uri": uri}], schema=LISTING)) for uri in ("/a/a.png", "/b")}
    line = ("a.png", 1, None, '{"blur_std": 1}', 0.5, None)
    assert hashes == {hashlib.sha256(f"{line!r}\n".encode()).hexdigest()}


def test_a_mask_of_another_size_is_a_difference(folder: Path, tmp_path: Path) -> None:
    manifest, masks = tmp_path / "manifest.csv", tmp_path / "masks"
    manifest.write_text(
        "key,mask\na.png,masks/a.png\nb.png,masks/more/b.png\na b.JPG,\nsub dir/ключ é.webp,masks/c.png\n"
    )
    (masks / "more").mkdir(parents=True)
    (masks / "a.png").write_bytes(b"mask")
    listings = []
    for mask in (b"mask", b"another mask"):
        (masks / "more" / "b.png").write_bytes(mask)
        asked = config(folder, manifest=str(manifest), degradation=DegradationConfig("random_inpainting"))
        listings.append(read_archive(asked).images)
    assert listings[0]["mask_size"].to_pylist() == [None, 4, 4, None]
    assert differences(*listings)["changed"] == ["b.png"]
    assert listing_hash(listings[0]) != listing_hash(listings[1])


def test_names_of_masks_may_be_numbers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("key,mask\na.png,001\nb.png,2024-01-05\n")
    asked = config(folder, manifest=str(tmp_path / "manifest.csv"), degradation=DegradationConfig("random_inpainting"))
    given = read_archive(asked).images["given"].to_pylist()
    assert given[1:3] == [f'{{"mask": "{tmp_path}/{name}"}}' for name in ("001", "2024-01-05")]


def test_a_changed_manifest_is_a_difference(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    listings = []
    for value in (1, 2):
        manifest.write_text(f"key,blur_std\na.png,{value}\n")
        listings.append(read_archive(config(folder, manifest=str(manifest))).images)
    assert differences(*listings)["changed"] == ["a.png"]


def test_two_keys_that_map_to_one_output_are_refused_before_any_work() -> None:
    output_names(["a.jpg", "a.png"], "same")
    output_names(["a.jpg", "a.png"], "webp")
    with pytest.raises(ConfigError, match=r"'a\.jpg' and 'a\.jpg\.png' would be written to one file, 'a\.jpg\.png'"):
        output_names(["a.jpg", "a.jpg.png", "b.png"], "png")


def test_one_and_one_point_nought_are_no_change() -> None:
    """A column of a manifest that held whole numbers holds fractions once a row has one."""
    row = {"key": "a.png", "uri": "/a/a.png", "size": 1, "given": '{"blur_std": 1}'}
    old = pa.Table.from_pylist([row], schema=LISTING)
    same, other = (
        pa.Table.from_pylist([row | {"given": given}], schema=LISTING)
        for given in ('{"blur_std": 1.0}', '{"blur_std": 2}')
    )
    assert differences(old, same)["changed"] == []
    assert differences(old, other)["changed"] == ["a.png"]


def test_a_limit_counts_what_was_taken_before_first() -> None:
    table = pa.table({"key": [f"{n}.png" for n in range(6)]})
    taken = pa.chunked_array([pa.array(["4.png", "1.png", "gone.png"])])
    for limit, keys in ((None, range(6)), (1, (1, 4)), (2, (1, 4)), (3, (0, 1, 4)), (9, range(6))):
        assert limited(table, limit, taken)["key"].to_pylist() == [f"{n}.png" for n in keys]
    assert limited(table, 2)["key"].to_pylist() == ["0.png", "1.png"]
