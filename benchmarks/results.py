"""The folder of an experiment's results: a cell is done once its JSON is there, which is written last."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cells import Cell
from flashray import storage
from flashray.errors import ConfigError

ROWS = pa.schema(
    [
        ("cell", pa.string()),
        ("key", pa.string()),
        ("parameters", pa.string()),  # JSON; what y was made with
        ("noise_std", pa.float64()),
        ("sigma_hat", pa.float64()),  # what the start went by
        ("sigma_true", pa.float64()),
        ("start_step", pa.int32()),
        ("nfe", pa.int32()),
        ("fallback", pa.bool_()),
        ("seconds", pa.float64()),
        *((metric, pa.float64()) for metric in ("psnr", "ssim", "lpips")),
        ("error", pa.string()),
    ]
)
# PNG files of the images that are kept
PICTURES = pa.schema([("key", pa.string()), *((what, pa.binary()) for what in ("measurement", "restored", "clean"))])


@dataclass(frozen=True)
class Result:
    """A finished cell: a row an image (`ROWS`), the kept images (`PICTURES`), and numbers of the whole."""

    cell: Cell
    rows: pa.Table
    pictures: pa.Table
    summary: dict[str, Any]


class Store:
    """Results under a folder or an s3:// prefix."""

    def __init__(self, output: str) -> None:
        self.output = output

    def uri(self, *parts: str) -> str:
        return storage.join(self.output, *parts)

    def has(self, *parts: str) -> bool:
        return storage.exists(self.uri(*parts))

    def read(self, *parts: str) -> bytes:
        return storage.read_bytes(self.uri(*parts))

    def put(self, data: bytes | str, *parts: str) -> None:
        """A file in one piece."""
        storage.put_bytes(self.uri(*parts), data.encode() if isinstance(data, str) else data)

    def done(self, cell: Cell) -> bool:
        return self.has("cells", f"{cell.id}.json")

    def keep(self, result: Result) -> None:
        """Each file in one piece, the JSON last."""
        self.put(to_parquet(result.pictures), "cells", f"{result.cell.id}.pictures.parquet")
        self.put(to_parquet(result.rows), "cells", f"{result.cell.id}.parquet")
        self.write_json(result.summary, "cells", f"{result.cell.id}.json")

    def result(self, cell: Cell) -> Result:
        """ConfigError when a file is damaged, with the remedy."""
        try:
            rows, pictures = (
                pq.read_table(io.BytesIO(self.read("cells", cell.id + ending)))
                for ending in (".parquet", ".pictures.parquet")
            )
            summary = json.loads(self.read("cells", f"{cell.id}.json"))
        except (OSError, ValueError, pa.ArrowException) as error:
            uri = self.uri("cells", f"{cell.id}.json")
            raise ConfigError(f"the results of {cell.name} are damaged ({error}); delete {uri} to redo it") from error
        return Result(cell, rows, pictures, summary)

    def write_json(self, values: Any, *parts: str) -> None:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        self.put(text + "\n", *parts)

    def read_json(self, *parts: str) -> Any:
        """None where there is no such file."""
        try:
            return json.loads(self.read(*parts))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ConfigError(f"{self.uri(*parts)} is damaged ({error}); choose another --output") from error


def to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
