"""The write stage, called in this process: the same kind of file comes out, and what it cannot hold is said."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from flashray.errors import ConfigError
from flashray.images import encode_png, fit_image, open_image, to_uint8, to_uint16
from flashray.pipeline.commit import read_commits
from flashray.pipeline.run_config import check
from flashray.pipeline.solve import SOLVED, as_pixels
from flashray.pipeline.worker_settings import WorkerSettings
from tests.support import profiles
from tests.support.image_files import colour_photo, deep, grey_photo, phone_exif, saved, saved_tiff, soft_alpha
from tests.support.runs import config_of
from tests.support.small_runs import write_unwatched

UNIT = "00-00000000"
EXIF = phone_exif()


def darker(x: Tensor) -> Tensor:
    """A restoration that changes every pixel that is not black."""
    return x * 0.97 - 0.03


def deep_png() -> bytes:
    from flashray.images.png import encode_16_bit

    values = np.concatenate([colour_photo(), soft_alpha()[..., None]], axis=-1)
    return encode_16_bit(deep(values))


FILES: dict[str, Callable[[], bytes]] = {
    "phone.jpg": lambda: saved(
        colour_photo(), "JPEG", exif=b"Exif\0\0" + EXIF, icc_profile=profiles.display_p3(), quality=95
    ),
    "plain.png": lambda: saved(colour_photo()),
    "grey.png": lambda: saved(grey_photo(), icc_profile=profiles.grey()),
    "deep with alpha.png": deep_png,
    "scan.tif": lambda: saved_tiff(deep(colour_photo()), photometric="rgb", iccprofile=profiles.adobe_like()),
    "inks.jpg": lambda: saved(Image.fromarray(colour_photo()).convert("CMYK"), "JPEG", icc_profile=profiles.cmyk()),
    "small.webp": lambda: saved(colour_photo(), "WEBP", lossless=True, exif=EXIF),
    "old.bmp": lambda: saved(colour_photo(), "BMP"),
    "grey.pgm": lambda: saved(grey_photo(), "PPM"),
}


class Archive:
    """A folder of files, and what the write stage makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder / "archive", folder / "restored"
        self.folder.mkdir()

    def write(
        self, files: dict[str, bytes], restore: Callable[[Tensor], Tensor] = darker, **values: Any
    ) -> dict[str, dict[str, Any]]:
        """The commit's rows by their keys."""
        rows, images = [], []
        for key, data in files.items():
            path = self.folder / key
            path.write_bytes(data)
            rows.append({"key": key, "status": "ok", "nfe": 2, "sigma_hat": 0.25})
            images.append(as_pixels(restore(open_image(data).pixels)) | {"uri": str(path), "data": data})
        config = config_of(str(self.folder), str(self.output), **values)
        table = pa.Table.from_pylist([{"unit_id": UNIT, "rows": rows, "images": images}], schema=SOLVED)
        write_unwatched(table, WorkerSettings.of(config, "cpu", 1, lpips=False, run_id="abc"))
        found = read_commits(config.io.output, [UNIT]).to_pylist()
        return {row["key"]: row for row in found}

    def read(self, name: str) -> bytes:
        return (self.output / name).read_bytes()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def kind_of(data: bytes) -> tuple[Any, ...]:
    """Format, kind, depth, alpha, profile and EXIF of a file."""
    source = open_image(data)
    alpha = None if source.alpha is None else source.alpha.tobytes()
    exif = None if source.format == "TIFF" else source.exif  # in TIFF they are tags, which are laid out anew
    return source.format, source.kind, source.depth, alpha, source.icc, exif


@pytest.mark.parametrize("key", FILES)
def test_the_same_kind_of_file_comes_out(key: str, archive: Archive) -> None:
    data = FILES[key]()
    row = archive.write({key: data})[key]
    assert (row["status"], row["unchanged"]) == ("ok", False)
    assert row["lost"] == ("the note of provenance" if key in ("old.bmp", "grey.pgm") else None)
    written = archive.read(key)
    assert kind_of(written) == kind_of(data)
    before, after = open_image(data), open_image(written)
    assert (after.pixels - darker(before.pixels)).abs().mean() < 4 / 127.5
    assert after.size == before.size
    if key == "deep with alpha.png":  # 16 bits are 16 bits: far finer than 8 could be
        assert before.alpha is not None
        seen = torch.from_numpy(before.alpha > 0)
        assert (after.pixels - darker(before.pixels))[:, seen].abs().max() < 0.01 / 127.5
    if key in ("phone.jpg", "small.webp"):
        assert after.exif == EXIF


@pytest.mark.parametrize("key", FILES)
@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_a_restored_square_keeps_what_is_beside_the_pixels(key: str, fit: Any, archive: Archive) -> None:
    data = FILES[key]()
    row = archive.write({key: data}, lambda x: fit_image(x, 40, fit), fit=fit)[key]
    assert row["status"] == "ok"
    source, after = open_image(data), open_image(archive.read(key))
    assert after.size == (40, 40)
    assert (after.format, after.kind, after.depth, after.icc) == (source.format, source.kind, source.depth, source.icc)
    assert (after.pixels - fit_image(source.pixels, 40, fit)).abs().mean() < 4 / 127.5
    if source.alpha is not None:
        units = torch.from_numpy(source.alpha.astype(np.float32))[None] / 65535 * 2 - 1
        assert after.alpha is not None
        found = torch.from_numpy(after.alpha.astype(np.float32)) / 65535 * 2 - 1
        assert (found - fit_image(units, 40, fit)[0]).abs().max() < 1e-4
    if key in ("phone.jpg", "small.webp"):
        details = Image.open(io.BytesIO(archive.read(key))).getexif().get_ifd(0x8769)
        assert details[0x9003] == "1987:06:05 04:03:02"
        assert (details[0xA002], details[0xA003]) == (40, 40)


def test_alpha_of_a_crop_that_is_larger_than_the_file_is_dropped(archive: Archive) -> None:
    data = saved(np.concatenate([colour_photo(20, 20), soft_alpha(20, 20)[..., None]], axis=-1))
    row = archive.write({"a.png": data}, lambda x: fit_image(x, 40, "resize"), fit="crop")["a.png"]
    assert row["lost"] == "alpha (the restored image shows another part of the photo)"
    assert open_image(archive.read("a.png")).alpha is None


def test_an_image_that_would_not_change_is_the_files_own_bytes(archive: Archive) -> None:
    files = {key: make() for key, make in FILES.items()}
    rows = archive.write(files, lambda x: x)
    assert all(row["unchanged"] and row["lost"] is None for row in rows.values())
    assert {key: archive.read(key) for key in files} == files


@pytest.mark.parametrize("kind", ["profile", "float"])
def test_an_undamaged_deep_image_is_the_files_own_bytes(archive: Archive, kind: str) -> None:
    """Of so many pixels some lie at half a 16-bit level, where rounding and arithmetic add up to more."""
    random = np.random.default_rng(0)
    if kind == "profile":
        levels = random.integers(0, 2**16, (512, 512, 3), np.uint16)
        data = saved_tiff(levels, photometric="rgb", iccprofile=profiles.adobe_like())
    else:
        data = saved_tiff(random.random((256, 256), np.float32))
    assert archive.write({"a.tif": data}, lambda x: x)["a.tif"]["unchanged"]
    assert archive.read("a.tif") == data


def test_another_format_is_encoded_although_nothing_changed(archive: Archive) -> None:
    row = archive.write({"a.png": FILES["plain.png"]()}, lambda x: x, format="webp")["a.png"]
    assert not row["unchanged"]
    assert open_image(archive.read("a.png.webp")).format == "WEBP"


def test_a_png_has_the_bytes_that_8_bits_gave(archive: Archive, photo: Tensor) -> None:
    """16 bits on the way move no pixel of an 8-bit file, at the file's size or another."""
    noise = torch.randn(photo[:, :96, :128].shape, generator=torch.Generator().manual_seed(1)) * 0.1
    for size in (None, 48):
        data = encode_png(photo[:, :96, :128])
        noisy = open_image(data).pixels + noise
        given = noisy if size is None else fit_image(noisy, size, "resize")
        archive.write({f"{size}.png": data}, lambda _, given=given: given, provenance=False)  # type: ignore[misc]
        assert archive.read(f"{size}.png") == encode_png(given)
        (archive.output / "_flashray" / "commits" / f"{UNIT}.parquet").unlink()


def test_rounding_to_16_bits_first_moves_no_8_bit_level() -> None:
    borders = (torch.arange(-2, 258).double() + 0.5) / 127.5 - 1
    near = [borders.float()]
    for _ in range(20):
        near += [torch.nextafter(near[-1], torch.tensor(9.0))]
    for _ in range(20):
        near += [torch.nextafter(near[0] if len(near) == 21 else near[-1], torch.tensor(-9.0))]
    x = torch.cat([*near, torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1])
    assert torch.equal((to_uint16(x) + 128) // 257, to_uint8(x).int())
    levels = torch.arange(65_536)
    assert torch.equal(to_uint16((levels / 32767.5 - 1).float()), levels.int())


def test_what_a_format_cannot_hold_is_noted_or_refused(archive: Archive, tmp_path: Path) -> None:
    files = {"deep with alpha.png": deep_png(), "plain.png": saved(colour_photo())}
    rows = archive.write(files, format="jpeg", quality=80)
    assert rows["deep with alpha.png"]["lost"] == "16 bits become 8; alpha (the image is laid on white)"
    assert rows["plain.png"]["lost"] is None
    (tmp_path / "strict").mkdir()
    strict = Archive(tmp_path / "strict")
    rows = strict.write(files | {"old.bmp": saved(colour_photo(), "BMP")}, format="jpeg", strict=True)
    assert rows["deep with alpha.png"]["status"] == "error"
    assert "the run is strict; lost: 16 bits become 8; alpha" in rows["deep with alpha.png"]["error"]
    assert rows["deep with alpha.png"]["sha256"] is None
    assert not (strict.output / "deep with alpha.png.jpg").exists()
    assert rows["plain.png"]["status"] == rows["old.bmp"]["status"] == "ok"


def test_a_missing_note_of_provenance_is_no_loss_to_a_strict_run(archive: Archive) -> None:
    assert archive.write({"old.bmp": saved(colour_photo(), "BMP")}, strict=True)["old.bmp"]["status"] == "ok"


def test_quality_is_of_the_encoder(archive: Archive, tmp_path: Path) -> None:
    archive.write({"a.png": saved(colour_photo())}, format="jpeg", quality=30)
    small = len(archive.read("a.png.jpg"))
    (tmp_path / "more").mkdir()
    other = Archive(tmp_path / "more")
    other.write({"a.png": saved(colour_photo())}, format="jpeg")
    assert len(other.read("a.png.jpg")) > 2 * small


def test_a_broken_profile_is_a_warning(archive: Archive) -> None:
    row = archive.write({"a.png": saved(colour_photo(), icc_profile=b"no profile at all, though long enough")})["a.png"]
    assert "profile" in row["warnings"]
    assert "taken as sRGB" in row["warnings"]


def test_the_note_says_how_the_image_was_made_and_can_be_left_out(archive: Archive, tmp_path: Path) -> None:
    archive.write({"a.png": saved(colour_photo())})
    note = json.loads(Image.open(archive.output / "a.png").text["flashray"])  # type: ignore[attr-defined]
    assert note == {"recipe": "gaussian_blur_flash_latent_dps", "nfe": "2", "sigma_hat": "0.2500", "run": "abc"}
    (tmp_path / "bare").mkdir()
    bare = Archive(tmp_path / "bare")
    bare.write({"a.png": saved(colour_photo())}, provenance=False)
    assert b"flashray" not in bare.read("a.png")


def test_the_time_of_modification_is_the_originals(archive: Archive) -> None:
    data = saved(colour_photo())
    (archive.folder / "old.png").write_bytes(data)

    def restore(x: Tensor) -> Tensor:
        os.utime(archive.folder / "old.png", ns=(0, 539_000_000_123_456_789))
        return darker(x)

    archive.write({"old.png": data}, restore)
    assert (archive.output / "old.png").stat().st_mtime_ns == 539_000_000_123_456_789


def test_the_options_are_checked() -> None:
    for wrong in ({"quality": 0}, {"quality": 101}, {"max_megapixels": 0.0}, {"max_megapixels": 179.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            check(config_of(**wrong))


def test_a_flag_can_be_denied() -> None:
    from flashray.pipeline.options import OPTIONS

    argv = ["a", "b", "--no-provenance", "--strict"]
    assert OPTIONS.normalise(argv, ("io.archive", "io.output")) == [
        *("--io.archive", "a", "--io.output", "b", "--io.provenance", "false", "--io.strict", "true")
    ]
    with pytest.raises(ConfigError, match="no-quality is not an option"):
        OPTIONS.normalise(["--no-quality", "3"])
