"""Archives in Parquet shards: which rows are images, how one is read, and how restored ones are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashray.errors import ConfigError
from flashray.images import open_image
from flashray.pipeline import run_record
from flashray.pipeline.archive import differences, listing_hash, read_archive, write_index
from flashray.pipeline.encoding import EncodedOutput
from flashray.pipeline.load import read_images
from flashray.pipeline.plan import PLAN, write_plan
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.unit_writers import ShardWriter
from flashray.pipeline.verify import Verified, verify
from flashray.recipe import DegradationConfig
from flashray.shards import parquet_shard
from flashray.shards.parquet_shard import parquet_of, read_rows
from flashray.shards.place import Place
from flashray.shards.shard_index import index_shards
from tests.support.families import CASES
from tests.support.runs import MakeConfig, config_of, restored
from tests.support.shard_files import loose_files, write_parquet

BLUR = {"degradation": DegradationConfig(), "measurement": "observed"}  # leaves blur_std open


def config(archive: Path, **values: Any) -> RunConfig:
    return config_of(**{"archive": str(archive), "output": "/nowhere/out", "measurement": "simulated"} | values)


def hugging_face(images: list[bytes | None], paths: list[str | None]) -> pa.Array:
    rows = [{"bytes": data, "path": path} for data, path in zip(images, paths, strict=True)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


@settings(max_examples=30, deadline=None)
@given(
    images=st.lists(st.none() | st.binary(max_size=400), min_size=1, max_size=50),
    group=st.integers(1, 20),
    packed=st.booleans(),
    compression=st.sampled_from(["none", "snappy"]),
    data=st.data(),
)
def test_each_row_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    images: list[bytes | None],
    group: int,
    packed: bool,
    compression: str,
    data: st.DataObject,
) -> None:
    """Against pyarrow's own reader, for any rows in any order."""
    path = tmp_path_factory.mktemp("shard") / "a.parquet"
    keys = [f"{i}.png" for i in range(len(images))]
    column = hugging_face(images, keys) if packed else pa.array(images, pa.large_binary())
    table = pa.table({"key": keys, "image": column, "label": list(range(len(images)))})
    pq.write_table(table, path, row_group_size=group, compression=compression)
    rows = data.draw(st.lists(st.sampled_from(range(len(images))), min_size=1))
    assert read_rows(str(path), rows) == [images[row] for row in rows]
    index = index_shards([(str(path), 0)], lambda name: False)
    assert index["key"].to_pylist() == keys
    assert index["offset"].to_pylist() == list(range(len(images)))


def test_an_image_costs_a_part_of_its_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet_of([f"{i}.png" for i in range(64)], [bytes([i]) * 1000 for i in range(64)], {}))
    groups: list[list[int]] = []
    read = pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, row_groups: list[int], **values: Any) -> Any:
        groups.append(row_groups)
        return read(self, *args, row_groups=row_groups, **values)

    monkeypatch.setattr(parquet_shard.pq.ParquetFile, "iter_batches", watched)
    found = read_images([Place(str(path), row) for row in (40, 17, 41)], [None] * 3)
    assert [one.data for one in found] == [bytes([row]) * 1000 for row in (40, 17, 41)]
    assert groups == [[1], [2]]


@pytest.mark.parametrize(
    ("columns", "keys"),
    [
        ({"key": ["a.png", "b"], "image": [b"1", b"2"]}, ["a.png", "b"]),
        ({"__key__": ["a", "b"], "jpg": [b"1", b"2"], "cls": [0, 1]}, ["a", "b"]),
        ({"image": hugging_face([b"1", b"2"], ["x/a.png", "b.png"]), "label": [0, 1]}, ["x/a.png", "b.png"]),
        ({"img": hugging_face([b"1", b"2"], ["a", "b"]), "key": ["c", "d"]}, ["c", "d"]),
        ({"image": [b"1", b"2"], "thumbnail": [b"1", b"2"], "key": ["a", "b"]}, ["a", "b"]),
        ({"image": [b"1", b"2"], "key": pa.array(["a", "b"]).dictionary_encode()}, ["a", "b"]),
    ],
)
def test_columns_that_an_archive_may_have(tmp_path: Path, columns: dict[str, Any], keys: list[str]) -> None:
    write_parquet(tmp_path / "shards" / "0.parquet", columns)
    listing = read_archive(config(tmp_path / "shards")).images
    assert listing["key"].to_pylist() == keys
    places = [Place(row["uri"], row["offset"], row["length"]) for row in listing.to_pylist()]
    assert [one.data for one in read_images(places, [None] * 2)] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"key": ["a"], "path": ["a.png"]}, r"has no column of image bytes.*\['key', 'path'\]"),
        ({"key": ["a"], "image": ["a.png"]}, "column image is of type string"),
        (
            {"key": ["a"], "one": [b"1"], "two": [b"2"]},
            r"several columns of bytes \(one, two\); name the images' column",
        ),
        ({"image": [b"1"], "name": ["a"]}, "has no column key"),
        ({"key": [7], "image": [b"1"]}, "column key is of type int64; keys are text"),
        ({"key": [b"a"], "image": [b"1"]}, "column key is of type binary; keys are text"),
        ({"key": ["a", None], "image": [b"1", b"2"]}, "row 1 has no key"),
        ({"key": ["a", ""], "image": [b"1", b"2"]}, "row 1 has no key"),
        ({"image": hugging_face([b"1"], [None])}, r"row 0 has no image\.path"),
        ({"key": ["a", "a"], "image": [b"1", b"2"]}, "1 keys are in the shards more than once, such as 'a'"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    write_parquet(tmp_path / "shards" / "0.parquet", columns)
    with pytest.raises(ConfigError, match=words):
        read_archive(config(tmp_path / "shards"))


def test_a_shard_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shards" / "0.parquet"
    write_parquet(path, {"key": ["a.png"], "image": [b"1" * 5000]})
    whole = path.read_bytes()
    for cut in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match=r"0\.parquet (is no sound Parquet, or cut short|cannot be read)"):
            read_archive(config(path.parent))


def test_a_damaged_page_is_an_error_of_its_images(tmp_path: Path) -> None:
    """The rest of the shard is read, though the rows are asked for together; and a row may hold nothing."""
    path = tmp_path / "0.parquet"
    columns = {"key": list("abcd"), "image": [b"1" * 3000, b"2" * 3000, b"3" * 3000, None]}
    pq.write_table(pa.table(columns), path, row_group_size=1, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    found = read_images([Place(str(path), row) for row in range(4)], [None] * 4)
    assert [one.data for one in found] == [b"1" * 3000, None, b"3" * 3000, None]
    assert "cannot be read" in (found[1].error or "")
    assert found[3].error == "its row of the shard holds no image"


def test_parquet_beside_loose_images_is_a_table(tmp_path: Path) -> None:
    """As `metadata.parquet` of an image folder; and the manifest is no shard."""
    folder = tmp_path / "photos"
    write_parquet(folder / "metadata.parquet", {"file_name": ["a.png"]})
    (folder / "a.png").write_bytes(b"1")
    found = read_archive(config(folder))
    assert found.images["key"].to_pylist() == ["a.png"]
    assert [entry.key for entry in found.others] == ["metadata.parquet"]
    (folder / "a.png").unlink()
    with pytest.raises(ConfigError, match="no column of image bytes"):
        read_archive(config(folder))
    write_parquet(folder / "metadata.parquet", {"key": ["a.png"], "blur_std": [1.0]})
    write_parquet(folder / "0.parquet", {"key": ["a.png"], "image": [b"1"]})
    found = read_archive(config(folder, manifest=str(folder / "metadata.parquet"), **BLUR))
    assert found.images["given"].to_pylist() == ['{"blur_std": 1.0}']
    assert [entry.key for entry in found.others] == ["metadata.parquet"]


def test_a_link_that_leads_nowhere_makes_no_archive_of_loose_images(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    write_parquet(folder / "train-0.parquet", {"key": ["a.png"], "image": [b"1"]})
    (folder / "latest").symlink_to(folder / "gone")
    found = read_archive(config(folder))
    assert found.images["key"].to_pylist() == ["a.png"]
    assert [entry.key for entry in found.others] == ["latest"]


def test_columns_give_parameters_and_a_manifest_wins(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    image = {"image": [b"1", b"2"]}
    write_parquet(folder / "0.parquet", {"key": ["a", "b"], "blur_std": [1.5, None], "noise_std": [0.1, 0.2]} | image)
    write_parquet(folder / "1.parquet", {"key": ["c", "d"], "blur_std": [2, 3]} | image)
    rows = read_archive(config(folder, **BLUR)).images.to_pylist()
    assert [row["given"] and json.loads(row["given"])["blur_std"] for row in rows] == [1.5, None, 2.0, 3.0]
    assert [row["noise_std"] for row in rows] == [0.1, 0.2, None, None]
    manifest = tmp_path / "m.csv"
    manifest.write_text("key,blur_std\nd,2.5\n")
    rows = read_archive(config(folder, manifest=str(manifest), **BLUR)).images.to_pylist()
    assert [row["given"] for row in rows] == [None, None, None, '{"blur_std": 2.5}']
    assert {row["noise_std"] for row in rows} == {None}
    write_parquet(folder / "1.parquet", {"key": ["c", "d"], "blur_std": ["much", "little"]} | image)
    with pytest.raises(ConfigError, match="different types in the shards"):
        read_archive(config(folder, **BLUR))
    (folder / "0.parquet").unlink()
    with pytest.raises(ConfigError, match="column blur_std is not a column of numbers"):
        read_archive(config(folder, **BLUR))


@pytest.mark.parametrize("same_size", [True, False])
def test_shards_that_exchange_their_names_are_another_archive(tmp_path: Path, same_size: bool) -> None:
    """Their images would be read from each other's places."""
    folder, output = tmp_path / "shards", tmp_path / "out"
    for name, image in (("a", b"x" * 40), ("b", b"y" * 40 if same_size else b"y" * 4000)):
        write_parquet(folder / f"{name}.parquet", {"key": [f"{name}.png"], "image": [image]})
    sizes = {path.stat().st_size for path in folder.iterdir()}
    assert (len(sizes) == 1) is same_size
    asked = config(folder, output=str(output))
    first = read_archive(asked)
    write_index(str(output), first.index)
    (folder / "a.parquet").rename(folder / "c")
    (folder / "b.parquet").rename(folder / "a.parquet")
    (folder / "c").rename(folder / "b.parquet")
    swapped = read_archive(asked).images
    found = read_images([Place(row["uri"], row["offset"]) for row in swapped.to_pylist()], [None] * 2)
    assert {key: one.data[:1] for key, one in zip(swapped["key"].to_pylist(), found, strict=True) if one.data} == {
        "a.png": b"x",
        "b.png": b"y",
    }
    assert sorted(differences(first.images, swapped)["changed"]) == ["a.png", "b.png"]
    assert listing_hash(first.images) != listing_hash(swapped)


def test_a_shard_of_another_name_is_refused_by_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for name in ("a", "b"):
        write_parquet(folder / f"{name}.parquet", {"key": [f"{name}.png"], "image": [b"x"]})
    asked = config(folder, output=str(tmp_path / "out"))

    def start() -> None:
        listing = read_archive(asked).images
        found = run_record.identity(asked, {})
        run_record.open_record(asked, run_record.examine(asked, found, listing), found, listing)

    start()
    write_plan(asked.io.output, 0, PLAN.empty_table())
    start()
    (folder / "b.parquet").rename(folder / "c.parquet")
    with pytest.raises(ConfigError, match=r"is not what the run .* was planned from: 1 changed \(b.png\)"):
        start()


def test_views_of_text_and_bytes_are_text_and_bytes(tmp_path: Path) -> None:
    columns = {"key": pa.array(["a.png"], pa.string_view()), "image": pa.array([b"x"], pa.binary_view())}
    write_parquet(tmp_path / "a.parquet", columns)
    assert read_archive(config(tmp_path)).images["key"].to_pylist() == ["a.png"]
    assert read_rows(str(tmp_path / "a.parquet"), [0]) == [b"x"]


def test_tars_need_names_of_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "shards" / "0.parquet", {"key": ["a"], "image": [b"1"]})
    with pytest.raises(ConfigError, match=r"'a' has no image's suffix .*--format, or --shards parquet"):
        read_archive(config(tmp_path / "shards", shards="tar"))
    for values in ({"shards": "tar", "format": "png"}, {"shards": "parquet"}, {}):
        assert len(read_archive(config(tmp_path / "shards", **values)).images) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parameters_go_along_for_every_family(tmp_path: Path, case: Any) -> None:
    """Of one schema whatever is given, so that the shards are one table; the same bytes again."""
    family = DegradationConfig(case.name, case.settings)
    asked = config(tmp_path / "in", output=str(tmp_path / "out"), shards="parquet", degradation=family)
    names = family.make().parameter_names
    schemas = []
    for unit, values in (("u0", dict.fromkeys(names, 1)), ("u1", {})):
        for _ in "ab":
            writer = ShardWriter(asked, unit)
            row: dict[str, Any] = {"key": "b.png"}
            writer.add(
                row, {"parameters": json.dumps(values), "noise_std": 0.1}, EncodedOutput(b"restored", False, None, None)
            )
            writer.add(
                {"key": "a.png"}, {"parameters": None, "noise_std": None}, EncodedOutput(b"other", False, None, None)
            )
            writer.close()
            data = (tmp_path / "out" / f"{unit}.parquet").read_bytes()
            assert (row["offset"], row["shard_size"]) == (1, len(data))
        table = pq.read_table(tmp_path / "out" / f"{unit}.parquet")
        schemas.append(table.schema)
        assert table.column_names == ["key", "image", *names, "noise_std"]
        assert table["key"].to_pylist() == ["a.png", "b.png"]
        assert table["noise_std"].to_pylist() == [None, 0.1]
        assert all(table[name].to_pylist() == [None, values.get(name)] for name in names)
    assert schemas[0] == schemas[1]


def test_nothing_restored_is_no_shard(tmp_path: Path) -> None:
    ShardWriter(config(tmp_path, output=str(tmp_path / "out"), shards="tar"), "u0").close()
    assert not (tmp_path / "out").exists()


def test_from_parquet_to_parquet(make: MakeConfig, archive: Path, tmp_path: Path) -> None:
    """Columns of the input are the operator's parameters, and columns of the output."""
    files = loose_files(archive) | {"z broken.png": b"no image"}
    blur = [1 + i / 10 for i in range(len(files))]
    keys = list(files)
    for number, rows in enumerate((slice(0, 6), slice(6, None))):
        image = hugging_face(list(files.values())[rows], keys[rows])
        write_parquet(tmp_path / "shards" / f"{number}.parquet", {"image": image, "blur_std": blur[rows]})
    output = tmp_path / "run"
    settings: dict[str, Any] = {"measurement": "observed", "shards": "parquet", "images_per_shard": 4}
    asked = make(tmp_path / "shards", output, unit_images=None, metrics=[], **settings)
    assert restore_archive(asked) == 1
    assert verify(str(output)) == Verified(images=11, restored=10, failed=["z broken.png"])
    assert sorted(restored(output)) == [f"00-{number:08d}.parquet" for number in range(3)]
    table = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("*.parquet"))])
    found = {row["key"]: row for row in table.to_pylist()}
    assert sorted(found) == sorted(keys[:-1])
    for key, row in found.items():
        assert row["blur_std"] == pytest.approx(blur[keys.index(key)])
        assert row["noise_std"] == 0.05
        assert open_image(row["image"]).pixels.shape == open_image(files[key]).pixels.shape
    assert RunStatus.read(str(output)).results.num_rows == 10
    # what was written is an archive again, with its parameters
    again = read_archive(config(output, **BLUR)).images.to_pylist()
    assert {row["key"]: json.loads(row["given"])["blur_std"] for row in again} == {
        key: pytest.approx(row["blur_std"]) for key, row in found.items()
    }
