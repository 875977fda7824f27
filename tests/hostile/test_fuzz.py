"""Inputs that nobody wrote: names and trees, image bytes, manifests, recipes, run records.

Whatever they are, there is no traceback, no wait of more than ten seconds, no file touched outside the output, and no
listed image without a row. `make test` tries each for some seconds; `make test-hostile` for an hour in all, by
FLASHRAY_FUZZ (how many times as many examples), and prints its seeds.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image, features

from flashray.cli import main
from flashray.errors import ConfigError, ImageError
from flashray.images import encode_like, open_image, read_header
from flashray.pipeline.archive import read_archive
from flashray.pipeline.lease import held
from flashray.pipeline.load import read_images
from flashray.pipeline.options import parse_run
from flashray.pipeline.outputs import is_relative_name
from flashray.pipeline.plan import write_plan
from flashray.pipeline.run_config import check
from flashray.pipeline.run_record import write_record
from flashray.recipe import DegradationConfig, load_recipe
from flashray.storage import redact
from flashray.yaml_text import read_yaml
from tests.support.runs import config_of
from tests.support.small_runs import KEYS, commit, planned, record_of

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

TIMES = float(os.environ.get("FLASHRAY_FUZZ", "1"))
SECONDS = 10


def tries(examples: int) -> Any:
    return settings(
        max_examples=math.ceil(examples * TIMES),
        deadline=timedelta(seconds=SECONDS),
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        database=None,
        derandomize=TIMES == 1,
    )


@contextmanager
def in_time() -> Iterator[None]:
    """Ends what hangs."""

    def ring(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# names and trees

_PART = st.one_of(
    st.sampled_from(["a", "b", "a.png", "a.png.png", "b.jpg", "_flashray", ".hidden", "x.TIF", "summary.json"]),
    st.binary(min_size=1, max_size=12).filter(lambda raw: not {0, 47} & set(raw) and raw not in (b".", b"..")),
    st.text(min_size=1, max_size=6).map(
        lambda text: (
            text.encode(
                errors="surrogateescape",
            )
            if _encodes(text)
            else b"u"
        )
    ),
)


def _encodes(text: str) -> bool:
    with suppress(UnicodeEncodeError):
        raw = text.encode()
        return bool(raw) and not {0, 47} & set(raw) and raw not in (b".", b"..")
    return False


def _raw(part: str | bytes) -> bytes:
    return part if isinstance(part, bytes) else part.encode()


_ENTRY = st.tuples(
    st.lists(_PART.map(_raw), min_size=1, max_size=4),
    st.sampled_from(["file", "file", "file", "folder", "pipe", "dead", "loop", "root", "output", "other"]),
    st.sampled_from([b"", b".png", b".jpg", b".txt"]),
)


def _grow(root: bytes, entries: list[Any], output: bytes) -> None:
    for parts, kind, suffix in entries:
        path = os.path.join(root, *parts) + suffix
        with suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if kind == "file":
                with open(path, "xb") as file:
                    file.write(b"x")
            elif kind == "folder":
                os.makedirs(path, exist_ok=True)
            elif kind == "pipe":
                os.mkfifo(path)
            else:
                targets = {
                    "dead": b"/nowhere",
                    "loop": b"..",
                    "root": root,
                    "output": output,
                    "other": b"/usr/share/doc",
                }
                os.symlink(os.path.join(targets[kind], b"x") if kind == "other" else targets[kind], path)


@given(entries=st.lists(_ENTRY, max_size=12), format=st.sampled_from(["same", "png", "jpeg"]))
@tries(250)
def test_trees(entries: list[Any], format: str) -> None:
    with tempfile.TemporaryDirectory() as folder, in_time():
        root, output = os.path.join(folder, "photos").encode(), os.path.join(folder, "out")
        os.makedirs(root)
        _grow(root, entries, output.encode())
        config = check(
            config_of(root.decode(), output, format=format, degradation=DegradationConfig(settings={"std": [1, 1]}))
        )
        before = sorted(os.listdir(folder))
        try:
            found = read_archive(config)
        except ConfigError:
            return
        finally:
            assert sorted(os.listdir(folder)) == before
        images = found.images.to_pylist()
        read = read_images([row["uri"] for row in images], [row["refused"] for row in images])
        assert len(read) == len(images) == len({row["key"] for row in images})
        for row, one in zip(images, read, strict=True):
            assert (one.data is None) != (one.error is None)
            assert is_relative_name(row["key"])
        plain = {
            os.path.relpath(os.path.join(where, name), root)
            for where, _, names in os.walk(root)
            for name in names
            if os.path.isfile(os.path.join(where, name)) and not os.path.islink(os.path.join(where, name))
        }
        listed = {row["key"] for row in images} | {entry.key for entry in found.others}
        for raw in plain:
            if b"_flashray" in raw.split(b"/")[:-1]:
                continue
            key = os.fsdecode(raw)
            assert key in listed or key.encode(errors="surrogateescape").decode(errors="backslashreplace") in listed


# image bytes


def _seeds() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((rgb, name, {}) for name in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")),
        (rgb, "JPEG", {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
        (rgb, "WEBP", {"lossless": True}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb.convert("L"), "PNG", {}),
        (rgb.convert("P"), "PNG", {}),
        (rgb.convert("RGBA"), "PNG", {}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
    ]
    if features.check("avif"):
        kinds.append((rgb, "AVIF", {}))
    found = []
    for image, name, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, format=name, **options)
        found.append(buffer.getvalue())
    return found


SEEDS = _seeds()
_EDIT = st.tuples(
    st.sampled_from(["flip", "set", "cut", "drop", "twice", "word"]), st.floats(0, 1), st.integers(0, 2**32 - 1)
)


def mutated(data: bytes, edits: list[tuple[str, float, int]]) -> bytes:
    raw = bytearray(data)
    for kind, place, value in edits:
        at = min(int(place * len(raw)), max(len(raw) - 1, 0))
        if not raw:
            break
        if kind == "flip":
            raw[at] ^= 1 << value % 8
        elif kind == "set":
            raw[at] = value % 256
        elif kind == "cut":
            del raw[at:]
        elif kind == "drop":
            del raw[at : at + value % 64]
        elif kind == "twice":
            raw[at:at] = raw[at : at + value % 64]
        else:
            raw[at : at + 4] = value.to_bytes(4, "big" if value % 2 else "little")
    return bytes(raw)


@given(seed=st.sampled_from(SEEDS), edits=st.lists(_EDIT, max_size=6))
@tries(1200)
def test_image_bytes(seed: bytes, edits: list[tuple[str, float, int]]) -> None:
    data = mutated(seed, edits)
    with in_time():
        try:
            header = read_header(data, 1.0)
            image = open_image(data, 1.0)
        except ImageError:
            return
        height, width = image.pixels.shape[1:]
        assert (header.height, header.width) == (height, width)
        assert bool(torch.isfinite(image.pixels).all())
        with suppress(ImageError):
            encode_like(image.pixels, image, "same", None, None)


@given(data=st.binary(max_size=300), head=st.sampled_from([b"", *(seed[:32] for seed in SEEDS)]))
@tries(400)
def test_bytes_that_are_no_image(data: bytes, head: bytes) -> None:
    with in_time(), suppress(ImageError):
        open_image(head + data, 1.0)


# manifests

_CELL = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5), st.sampled_from(["a.png", "1.5", ""])
)


def _refuses_or_lists(manifest: Path, **values: Any) -> None:
    photos = manifest.parent / "photos"
    photos.mkdir(exist_ok=True)
    (photos / "a.png").write_bytes(b"x")
    asked = {"manifest": str(manifest), "degradation": DegradationConfig()} | values
    with in_time(), suppress(ConfigError):
        images = read_archive(check(config_of(photos, manifest.parent / "out", **asked))).images
        assert images["key"].to_pylist() == ["a.png"]
        for row in images.to_pylist():
            assert row["noise_std"] is None or 0 <= row["noise_std"] < math.inf
            for value in json.loads(row["given"] or "{}").values():
                assert value is None or isinstance(value, str) or math.isfinite(value)


@given(
    names=st.lists(st.sampled_from(["key", "blur_std", "noise_std", "mask", "x"]), min_size=1, max_size=5),
    rows=st.lists(st.lists(_CELL, min_size=5, max_size=5), max_size=4),
    degradation=st.sampled_from(["gaussian_blur", "random_inpainting", "jpeg"]),
)
@example(
    names=["key", "noise_std", "blur_std"],
    rows=[[1, None, None, None, None], [0, None, 2**53 + 1, None, None]],
    degradation="gaussian_blur",
)  # whole numbers that no float64 holds
@tries(300)
def test_manifest_tables(names: list[str], rows: list[list[Any]], degradation: str) -> None:
    columns = [[row[i] for row in rows] for i in range(len(names))]
    arrays = []
    for column in columns:
        try:
            arrays.append(pa.array(column))
        except (pa.ArrowException, TypeError, OverflowError):
            arrays.append(
                pa.array([None if one is None else str(one).encode("utf-8", "replace").decode() for one in column])
            )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.parquet"
        pq.write_table(pa.Table.from_arrays(arrays, names=names), path)
        _refuses_or_lists(path, degradation=DegradationConfig(degradation))


@given(edits=st.lists(_EDIT, max_size=5), text=st.booleans())
@tries(200)
def test_manifest_bytes(edits: list[tuple[str, float, int]], text: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("m.csv" if text else "m.parquet")
        pq.write_table(pa.table({"key": ["a.png", "b.png"], "blur_std": [1.5, 2.0]}), path)
        good = b"key,blur_std,noise_std\na.png,1.5,0.1\nb.png,2,0.05\n" if text else path.read_bytes()
        path.write_bytes(mutated(good, edits))
        _refuses_or_lists(path)


# recipes and configurations

_VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
_RECIPE = st.fixed_dictionaries(
    {},
    optional={
        "degradation": st.one_of(
            _VALUE,
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(
                        ["gaussian_blur", "motion_blur", "jpeg", "random_inpainting", "nonlinear_blur"]
                    )
                },
                optional={
                    "settings": st.dictionaries(
                        st.sampled_from(["std", "kernel_size", "length", "quality", "missing", "motion", "preset"]),
                        _VALUE,
                        max_size=3,
                    ),
                    "noise_std": _VALUE,
                },
            ),
        ),
        "solver": st.one_of(
            _VALUE, st.fixed_dictionaries({}, optional=dict.fromkeys(("name", "steps", "eta", "settings"), _VALUE))
        ),
        "start": st.one_of(
            _VALUE, st.fixed_dictionaries({}, optional=dict.fromkeys(("mode", "c", "step", "formula"), _VALUE))
        ),
        "prior": _VALUE,
        "seed": _VALUE,
    },
)


@given(values=_RECIPE)
@tries(300)
def test_recipes(values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, in_time():
        path = Path(folder) / "r.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8", errors="replace")
        with suppress(ConfigError):
            load_recipe(str(path))


@given(edits=st.lists(_EDIT, max_size=5))
@tries(300)
def test_recipe_bytes(edits: list[tuple[str, float, int]]) -> None:
    good = b"degradation: {name: jpeg, settings: {quality: [5, 60]}, noise_std: 0.05}\nsolver: {steps: 20}\nseed: 1\n"
    with in_time(), suppress(ConfigError):
        read_yaml(mutated(good, edits), "r")


@given(
    option=st.sampled_from(
        ["limit", "seed", "metrics", "solver.settings", "degradation.noise_std", "start.c", "fit", "slots"]
    ),
    value=st.one_of(st.text(max_size=20), _VALUE.map(str)),
)
@tries(40)
def test_command_lines(option: str, value: str) -> None:
    with in_time(), suppress(ConfigError):
        parse_run(["/a", "/o", "--recipe", "gaussian_blur_flash_proximal", f"--{option}", value])


# run records


def _write_run(folder: str) -> None:
    write_record(folder, record_of(4))
    write_plan(folder, 0, planned(KEYS, ["00-00000000"] * 2 + ["00-00000001"] * 2))
    commit(Path(folder), "00-00000000", KEYS[:2])
    commit(Path(folder), "00-00000001", KEYS[2:])
    with held(folder):
        pass
    counts = {"images": 4, "restored": 4, "failed": 0, "mean_nfe": 3.0, "psnr_interval": [1, 2], "distributions": {}}
    (Path(folder) / "_flashray" / "summary.json").write_text(json.dumps(counts))


@given(
    which=st.integers(0, 5),
    edits=st.lists(_EDIT, min_size=1, max_size=5),
    verb=st.sampled_from([["verify"], ["verify", "--clean"], ["compare"], ["report"]]),
)
@example(which=0, edits=[("flip", 0.078125, 7)], verb=["verify"])  # a key that is no UTF-8
@tries(200)
def test_run_records(which: int, edits: list[tuple[str, float, int]], verb: list[str]) -> None:
    with tempfile.TemporaryDirectory() as outside, in_time():
        folder = os.path.join(outside, "out")
        os.makedirs(folder)
        _write_run(folder)
        files = sorted(path for path in (Path(folder) / "_flashray").rglob("*") if path.is_file())
        path = files[which % len(files)]
        path.write_bytes(mutated(path.read_bytes(), edits))
        kept = {key: (Path(folder) / key).read_bytes() for key in KEYS}
        name, *rest = verb
        assert main([name, folder, *rest]) in (0, 1, 2)
        assert {key: (Path(folder) / key).read_bytes() for key in KEYS} == kept
        assert os.listdir(outside) == ["out"]


@given(
    text=st.text(max_size=40),
    secret=st.text("abcdef/@?#:&= ", min_size=4, max_size=8).map(lambda one: f"Zq{one.strip()}qZ"),
)
@tries(300)
def test_redaction(text: str, secret: str) -> None:
    with in_time():
        assert isinstance(redact(text), str)
        if " " not in secret:
            assert secret not in redact(f"cannot reach https://me:{secret}@host/x now")
