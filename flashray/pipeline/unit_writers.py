"""How a unit's restored images are written: a file each, or all of them as one shard.

The write stage imports it in its tasks only, because names of images need torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import torch

from flashray import storage
from flashray.images import output_name
from flashray.pipeline.encoding import EncodedOutput
from flashray.pipeline.outputs import Layout, sample_names
from flashray.pipeline.run_config import RunConfig
from flashray.shards.parquet_shard import parquet_of
from flashray.shards.tar_shard import tar_of


class FileWriter:
    """Each image in one put to its own name, with its original's time on a local disk, after its further samples."""

    def __init__(self, config: RunConfig) -> None:
        self.layout, self.samples = Layout.of(config.io), config.io.samples

    def add(self, row: dict[str, Any], image: dict[str, Any], encoded: EncodedOutput) -> None:
        """Take a restored image: its commit row, the value of `solve.IMAGE` that it was made from, and its files."""
        name = self.layout.file(row)
        samples = dict(zip(sample_names(name, self.samples), encoded.samples, strict=True))
        for file, data in samples.items():
            storage.put_bytes(storage.join(self.layout.output, file), data)
        storage.put_bytes(storage.join(self.layout.output, name), encoded.data, storage.modified(image["uri"]))
        if samples:
            row |= {"samples": [_file(*one) for one in samples.items()], "spread": encoded.spread}

    def close(self) -> None:
        """Called once all images are there, before the commit."""


class ShardWriter:
    """All images in one put to the unit's shard, sorted by key; nothing where none is restored."""

    def __init__(self, config: RunConfig, unit_id: str) -> None:
        self.layout, self.unit_id = Layout.of(config.io), unit_id
        self.pack: Callable[..., tuple[bytes, list[int]]] = tar_of
        if config.io.shards == "parquet":
            self.parameters = parameter_types(config)
            self.pack = self._parquet
        self.images: list[tuple[dict[str, Any], dict[str, Any], bytes]] = []

    def add(self, row: dict[str, Any], image: dict[str, Any], encoded: EncodedOutput) -> None:
        """As `FileWriter.add`, of one sample."""
        self.images.append((row, image, encoded.data))

    def close(self) -> None:
        """Write the shard, and into the commit rows where in it their images lie."""
        if not self.images:
            return
        self.images.sort(key=lambda one: one[0]["key"])
        data, offsets = self.pack([(output_name(row["key"], self.layout.format), one) for row, _, one in self.images])
        storage.put_bytes(storage.join(self.layout.output, self.layout.file({"unit_id": self.unit_id})), data)
        whole = {"shard_size": len(data), "shard_sha256": hashlib.sha256(data).hexdigest()}
        for (row, _, _), offset in zip(self.images, offsets, strict=True):
            row |= whole | {"offset": offset}

    def _parquet(self, named: list[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
        given = [json.loads(image["parameters"] or "{}") for _, image, _ in self.images]
        columns = {name: pa.array([one.get(name) for one in given], kind) for name, kind in self.parameters.items()}
        columns["noise_std"] = pa.array([image["noise_std"] for _, image, _ in self.images], pa.float64())
        keys, images = zip(*named, strict=True)
        return parquet_of(keys, images, columns), list(range(len(named)))


def _file(name: str, data: bytes) -> dict[str, Any]:
    """A `commit.FILE`."""
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def parameter_types(config: RunConfig) -> dict[str, pa.DataType]:
    """The columns of parameters that go along with the images: whole numbers and floating-point ones."""
    degradation = config.recipe.degradation.make()
    if degradation.unknown and not config.io.simulated:
        return {}
    drawn = degradation.parameters_at(torch.zeros(1), torch.Generator().manual_seed(0))
    names = [name for name in degradation.parameter_names if name in drawn]  # a Physics may take tensors beside numbers
    return {name: pa.float64() if drawn[name].is_floating_point() else pa.int64() for name in names}
