"""Archives in WebDataset tars: which images are in them, how one is read, and how restored ones are written."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashray import storage
from flashray.errors import ConfigError
from flashray.images import open_image
from flashray.pipeline import archive as archives
from flashray.pipeline.archive import read_archive, write_index
from flashray.pipeline.clean import clean
from flashray.pipeline.load import read_images
from flashray.pipeline.outputs import without_place
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_config import RunConfig, check
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.units import PIXELS, Packing
from flashray.pipeline.verify import Verified, verify
from flashray.pipeline.workload import Workload
from flashray.recipe import DegradationConfig
from flashray.shards.place import Place
from flashray.shards.shard_index import index_shards
from flashray.shards.tar_shard import tar_of
from tests.support.runs import MakeConfig, changed, config_of, restored, summary_of
from tests.support.shard_files import link, loose_files, tar_bytes, write_tars

BLUR = {"degradation": DegradationConfig(), "measurement": "observed"}  # leaves blur_std open
NAMES = st.text(st.characters(exclude_characters="/\0.", exclude_categories=["Cs"]), min_size=1, max_size=80)


def config(archive: str | Path, **values: Any) -> RunConfig:
    return config_of(**{"archive": str(archive), "output": "/nowhere/out", "measurement": "simulated"} | values)


def any_image(name: str) -> bool:
    return name.lower().endswith((".png", ".jpg"))


def places(table: Any) -> list[Place]:
    return [Place(row["uri"], row["offset"], row["length"]) for row in table.to_pylist()]


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes of every read at a place, while shards are read."""
    sizes: list[int] = []
    opened = storage.opened

    class Counted(io.RawIOBase):
        def __init__(self, uri: str) -> None:
            self.file = opened(uri)

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, place: int, whence: int = 0) -> int:
            self.file.seek(place, whence)
            return self.file.tell()

        def readinto(self, into: Any) -> int:
            data = self.file.read(len(into))
            into[: len(data)] = data
            sizes.append(len(data))
            return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "opened", Counted)
        yield sizes


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(NAMES, min_size=1, max_size=8, unique=True),
    kind=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    seed=st.integers(0, 2**16),
)
def test_each_image_is_where_the_index_says(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], kind: int, seed: int
) -> None:
    """Against Python's own reader, for long names and names of any script."""
    chance = random.Random(seed)
    files = {f"{'sub/' * chance.randint(0, 2)}{name}.png": chance.randbytes(chance.randint(0, 2000)) for name in names}
    path = tmp_path_factory.mktemp("shard") / "a.tar"
    path.write_bytes(tar_bytes([*files.items(), ("notes.txt", b"x" * 700)], kind))
    table = index_shards([(str(path), path.stat().st_size)], any_image)
    assert dict(zip(table["key"].to_pylist(), [len(data) for data in files.values()], strict=True)) == {
        name: len(data) for name, data in files.items()
    }
    found = read_images(places(table), [None] * len(table))
    assert [one.data for one in found] == list(files.values())
    with tarfile.open(path) as tar:
        assert [one.data for one in found] == [tar.extractfile(name).read() for name in files]  # type: ignore[union-attr]


def test_a_written_tar_is_one_that_others_read() -> None:
    images = [("a.png", b"1" * 700), ("más/ключ é.png", b""), ("x" * 300 + ".png", b"2")]
    data, offsets = tar_of(images)
    assert tar_of(images) == (data, offsets)
    for offset, (_, one) in zip(offsets, images, strict=True):
        assert data[offset : offset + len(one)] == one
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert [(member.name, tar.extractfile(member).read()) for member in members] == images  # type: ignore[union-attr]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_only_headers_are_listed_and_only_one_image_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{i}.png": bytes([i]) * 1_000_000 for i in range(8)}
    write_tars(tmp_path / "shards", files, 8)
    with counted(monkeypatch) as sizes:
        table = read_archive(config(tmp_path / "shards")).images
    assert sum(sizes) < 0.15 * 8_000_000
    asked: list[int] = []
    monkeypatch.setattr(storage, "read_range", lambda uri, offset, length: asked.append(length) or b"x")
    read_images(places(table)[3:4], [None])
    assert asked == [1_000_000]


def test_the_order_is_that_of_the_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_tars(folder, {"b.png": b"1", "a.png": b"22", "c.png": b"333"}, 2)
    (folder / "README.md").write_text("others")
    found = read_archive(config(folder))
    assert found.images["key"].to_pylist() == ["b.png", "a.png", "c.png"]
    assert found.images["size"].to_pylist() == [1, 2, 3]
    assert found.images["uri"].to_pylist()[1:] == [f"{folder}/00000.tar", f"{folder}/00001.tar"]
    assert [entry.key for entry in found.others] == ["README.md"]
    assert read_archive(config(folder, limit=2)).images["key"].to_pylist() == ["b.png", "a.png"]
    alone = read_archive(config(folder / "00001.tar")).images
    assert alone["key"].to_pylist() == ["c.png"]
    assert alone["uri"].to_pylist() == [f"{folder}/00001.tar"]


def test_names_that_lead_out_and_links_are_rows_with_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    device = tarfile.TarInfo("pipe.png")
    device.type = tarfile.FIFOTYPE
    members: list[tuple[Any, bytes]] = [("./a.png", b"1"), ("../b.png", b"1"), ("/etc/c.png", b"1")]
    members += [(link("d.png", "/etc/passwd"), b""), (link("e.png", "./a.png", tarfile.LNKTYPE), b""), (device, b"")]
    members += [(".hidden.png", b"1"), ("._a.png", b"1"), ("folder.png/inside.txt", b"1")]
    (folder / "a.tar").write_bytes(tar_bytes(members))
    rows = {row["key"]: row["refused"] for row in read_archive(config(folder)).images.to_pylist()}
    assert rows.pop("a.png") is None
    assert list(rows) == ["../b.png", "/etc/c.png", "d.png", "e.png", "pipe.png"]
    assert "no name below the output" in rows["../b.png"]
    assert "no name below the output" in rows["/etc/c.png"]
    assert rows["d.png"] == "it is a link within its tar, to '/etc/passwd'"
    assert "link within its tar" in rows["e.png"]
    assert "no plain file" in rows["pipe.png"]


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tar_bytes([("a.png", b"1" * 600), ("b.png", b"2" * 100), ("ключ.png", b"3" * 1500)])
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    path = tmp_path / "shards" / "cut.tar"
    path.parent.mkdir()
    for cut in sorted({*range(0, end + 511, 137), 512, 1024, 2048, end}):
        path.write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match=r"cut\.tar is no sound tar, or cut short"):
            read_archive(config(path.parent))
    path.write_bytes(whole[: end + 512])
    assert len(read_archive(config(path.parent)).images) == 3
    path.write_bytes(whole + bytes(100_000))
    assert len(read_archive(config(path.parent)).images) == 3, "padding is nothing"
    path.write_bytes(whole + whole)
    with pytest.raises(ConfigError, match="more behind its end mark"):
        read_archive(config(path.parent))


def test_names_among_the_runs_own_records_are_errors_of_their_images(tmp_path: Path) -> None:
    names = ["_flashray/run.json.png", "a/_flashray/b.png", "d.png"]
    write_tars(tmp_path / "shards", dict.fromkeys(names, b"1"), 9)
    rows = {row["key"]: row["refused"] for row in read_archive(config(tmp_path / "shards")).images.to_pylist()}
    assert rows.keys() == set(names)
    assert rows["d.png"] is None
    assert all("own records" in rows[name] for name in names[:2])
    refused = without_place(["a\0b.png", "c/.flashray-12.png", "e_flashray/f.png"], "same")
    assert refused.keys() == {"a\0b.png", "c/.flashray-12.png"}
    assert "is no name below the output" in refused["a\0b.png"]
    assert "own records" in refused["c/.flashray-12.png"]


def test_what_is_refused_before_any_work(tmp_path: Path) -> None:
    import gzip

    folder = tmp_path / "shards"
    write_tars(folder, {"a.png": b"1", "b.png": b"2"}, 1)
    (folder / "loose.png").write_bytes(b"1")
    with pytest.raises(ConfigError, match=r"holds loose images \('loose.png'\) and tars \('00000.tar'\)"):
        read_archive(config(folder))
    (folder / "loose.png").unlink()

    for name in ("z.tar.gz", "z.tar"):
        (folder / name).write_bytes(gzip.compress((folder / "00000.tar").read_bytes()))
        with pytest.raises(ConfigError, match=r"z\.tar\S* is compressed \(gzip\).*unpack it"):
            read_archive(config(folder))
        (folder / name).unlink()

    (folder / "z.tar").write_bytes(tar_bytes([("c.png", b"1"), ("a.png", b"1")]))
    with pytest.raises(ConfigError, match=r"1 keys .* more than once, such as 'a.png' in \S*00000.tar and \S*z.tar"):
        read_archive(config(folder))
    (folder / "z.tar").write_bytes(tar_bytes([("c.png", b"1"), ("./c.png", b"1")]))
    with pytest.raises(ConfigError, match="more than once"):
        read_archive(config(folder))
    (folder / "z.tar").write_bytes(b"<!DOCTYPE html>" * 100)
    with pytest.raises(ConfigError, match=r"z\.tar is no sound tar"):
        read_archive(config(folder))
    (folder / "z.tar").unlink()
    (folder / "z.tar").symlink_to(folder / "z.tar")
    with pytest.raises(ConfigError, match=r"z\.tar cannot be read: it is a link that leads nowhere"):
        read_archive(config(folder))

    other = tmp_path / "texts"
    write_tars(other, {"a.txt": b"1"}, 1)
    with pytest.raises(ConfigError, match=r"the 1 shards of archive .* hold no images"):
        read_archive(config(other))


def test_sidecars_give_parameters_and_a_manifest_wins(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()

    def write(**sidecars: Any) -> None:
        images = [("x/a.b.png", b"1"), ("x/a.json", json.dumps(sidecars["a"]).encode()), ("b.jpg", b"1")]
        (folder / "0.tar").write_bytes(tar_bytes([*images, ("b.json", json.dumps(sidecars["b"]).encode())]))

    write(a={"blur_std": 1.5, "noise_std": 0.02, "caption": "x"}, b={"blur_std": 2})
    rows = read_archive(config(folder, **BLUR)).images.to_pylist()
    assert [json.loads(row["given"]) for row in rows] == [{"blur_std": 1.5}, {"blur_std": 2.0}]
    assert [row["noise_std"] for row in rows] == [0.02, None]
    assert read_archive(config(folder)).images["given"].null_count == 2  # simulated: clean images have no damage yet

    manifest = tmp_path / "m.csv"
    manifest.write_text("key,blur_std\nb.jpg,3\n")
    rows = read_archive(config(folder, manifest=str(manifest), **BLUR)).images.to_pylist()
    assert [row["given"] for row in rows] == [None, '{"blur_std": 3}']
    assert [row["noise_std"] for row in rows] == [None, None]

    for wrong, words in ((["x"], "no mapping"), ({"blur_std": "1.5"}, "blur_std is '1.5' and no number")):
        write(a=wrong, b={})
        with pytest.raises(ConfigError, match=rf"0\.tar: the sidecar x/a\.json cannot be understood: .*{words}"):
            read_archive(config(folder, **BLUR))
    write(a={"blur_std": -1}, b={})
    with pytest.raises(ConfigError, match=f"archive {folder}: .*"):
        read_archive(config(folder, **BLUR))
    write(a={}, b={})
    with pytest.raises(ConfigError, match="leaves blur_std open"):
        read_archive(config(folder, **BLUR))


def test_a_restart_does_not_read_the_shards_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = tmp_path / "shards", tmp_path / "out"
    write_tars(folder, {"a.png": b"1", "b.png": b"2"}, 1)
    asked = config(folder, output=str(output))
    first = read_archive(asked)
    write_index(str(output), first.index)
    scanned: list[int] = []
    monkeypatch.setattr(archives, "index_shards", lambda *a: scanned.append(1) or index_shards(*a))
    again = read_archive(asked)
    assert again.index is None
    assert again.images == first.images
    assert not scanned
    read_archive(changed(asked, retry_failed=True))  # an image may have been replaced, and the size kept
    assert len(scanned) == 1
    write_tars(folder, {"a.png": b"1", "b.png": b"2" * 20_000}, 1)
    assert read_archive(asked).images["size"].to_pylist() == [1, 20_000]
    (output / "_flashray" / "index.parquet").write_bytes(b"damaged")
    assert len(read_archive(asked).images) == 2


def test_a_place_that_is_gone_is_an_error_of_the_image(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 100)
    found = read_images(
        [Place(str(path), 10, 20), Place(str(path), 90, 20), Place(str(tmp_path / "b"), 0, 1)], [None] * 3
    )
    assert found[0].data == b"x" * 20
    assert "ends before byte 110" in (found[1].error or "")
    assert "no longer there" in (found[2].error or "")


@pytest.mark.parametrize("images", [1, 7, 100])
def test_a_unit_of_shards_has_its_number_of_images(images: int) -> None:
    step = np.random.default_rng(0).integers(0, 300, 250)
    order, unit = Packing(None, slots=8, actors=3, images_per_shard=images)(Workload.of_windows(step))
    assert sorted(order) == list(range(250))
    counts = np.bincount(unit)
    assert set(counts[:-1]) == {images}
    assert counts[-1] == (250 - 1) % images + 1
    assert np.all(np.diff(step[order]) <= 0)


def test_large_images_make_smaller_shards() -> None:
    load = Workload.of_starts(np.full(40, 3), np.full(40, 1), np.full(40, PIXELS // 8))
    _, unit = Packing(None, slots=8, images_per_shard=20)(load)
    assert np.bincount(unit).tolist() == [8, 8, 4, 8, 8, 4]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"images_per_shard": 4}, "images_per_shard is given without shards; add --shards"),
        ({"shards": "tar", "images_per_shard": 0}, "images_per_shard is 0; give at least 1"),
        ({"shards": "tar", "unit_images": 4}, "unit_images is given with shards"),
        ({"shards": "tar", "samples": 2}, "samples are files beside the images"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(config(tmp_path / "in", output=str(tmp_path / "out"), **values))


def images_in(folder: Path) -> dict[str, bytes]:
    """Name → bytes of the members of all tars in a folder."""
    found: list[tuple[str, bytes]] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert len(dict(found)) == len(found), "an image is in two shards"
    return dict(found)


TO_TARS: dict[str, Any] = {"provenance": False, "shards": "tar", "images_per_shard": 4, "unit_images": None}


def test_from_tars_to_tars(make: MakeConfig, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each image in one shard, with the bytes of its commit; broken ones are rows; a lost shard is made again."""
    files = loose_files(archive)
    write_tars(tmp_path / "shards", files | {"z broken.png": b"no image", "zz empty.png": b""}, 4)
    output = tmp_path / "run"
    asked = make(tmp_path / "shards", output, **TO_TARS)
    assert restore_archive(asked) == 1
    failed = ["z broken.png", "zz empty.png"]
    assert verify(str(output)) == Verified(images=12, restored=10, failed=failed)
    shards = sorted(path.name for path in output.glob("*.tar"))
    assert shards == [f"00-{number:08d}.tar" for number in range(3)]
    assert {path.name for path in output.iterdir()} == {*shards, "_flashray", "report.html"}
    rows = {row["key"]: row for row in RunStatus.read(str(output)).results.to_pylist()}
    found = images_in(output)
    assert sorted(found) == sorted(files)
    assert {key: hashlib.sha256(data).hexdigest() for key, data in found.items()} == {
        key: row["sha256"] for key, row in rows.items()
    }
    assert summary_of(output)["restored"] == 10
    assert (output / "report.html").read_bytes().count(b"data:image/jpeg") >= 10

    before = {name: (output / name).stat().st_mtime_ns for name in shards}
    capsys.readouterr()
    assert restore_archive(asked) == 1
    assert "nothing to do" in capsys.readouterr().out
    assert {name: (output / name).stat().st_mtime_ns for name in shards} == before

    lost = sorted(key for key, row in rows.items() if row["unit_id"] == "00-00000001")
    (output / shards[1]).write_bytes(b"damaged" + (output / shards[1]).read_bytes()[7:])
    assert verify(str(output)).changed == lost
    assert restore_archive(changed(asked, verify=True)) == 1
    assert verify(str(output)) == Verified(images=12, restored=10, failed=failed)
    assert sorted(path.name for path in output.glob("*.tar")) == [shards[0], shards[2], "01-00000000.tar"]
    assert sorted(images_in(output)) == sorted(files)
    (output / shards[1]).write_bytes(b"left by a writer that was thought dead")
    assert verify(str(output)).strangers == [shards[1]]
    assert clean(str(output)) == [f"{output}/{shards[1]}"]
    assert verify(str(output)).sound


@pytest.mark.slow
def test_shards_and_files_hold_the_same_images(make: MakeConfig, archive: Path, tmp_path: Path) -> None:
    """From tars to files to the byte, because the listing, and so the batches, are the same."""
    write_tars(tmp_path / "shards", loose_files(archive), 4)
    assert restore_archive(make(archive, tmp_path / "loose", provenance=False)) == 0
    loose = restored(tmp_path / "loose")
    assert restore_archive(make(tmp_path / "shards", tmp_path / "files", provenance=False)) == 0
    assert restored(tmp_path / "files") == loose
    asked = make(archive, tmp_path / "tars", **TO_TARS)
    assert restore_archive(asked) == 0
    found = images_in(tmp_path / "tars")
    assert sorted(found) == sorted(loose)
    for key, data in found.items():  # in units of other images the last bit may be rounded otherwise
        assert (open_image(data).pixels - open_image(loose[key]).pixels).abs().max() <= 1 / 127
    assert restore_archive(changed(asked, overwrite="tars", limit=2)) == 0
    assert [path.name for path in (tmp_path / "tars").glob("*.tar")] == ["00-00000000.tar"]


@pytest.mark.slow
def test_shards_on_s3(s3: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing and the images are those of the local shards; one image is read, and not its tar."""
    write_tars(tmp_path / "shards", loose_files(archive), 4)
    for path in (tmp_path / "shards").iterdir():
        storage.put_bytes(f"{s3}/shards/{path.name}", path.read_bytes())
    there, here = read_archive(config(f"{s3}/shards")).images, read_archive(config(tmp_path / "shards")).images
    assert there.drop_columns(["uri"]) == here.drop_columns(["uri"])
    monkeypatch.setattr(storage, "read_bytes", None)
    read = read_images(places(there), [None] * len(there))
    assert [one.data for one in read] == [one.data for one in read_images(places(here), [None] * len(here))]
    gone = read_images([Place(f"{s3}/shards/gone.tar", 0, 1), Place(f"{s3}/shards/00000.tar", 10**9, 1)], [None] * 2)
    assert all(one.error for one in gone)
