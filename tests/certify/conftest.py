"""Work and shards for certifier plug-ins, with a small convolutional network."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from certbench.certify.protocol import CollectWork, Shard

CLASSES = 5


class SmallNet(nn.Module):
    """Logits of 3 x 8 x 8 images, spread enough that votes are divided."""

    num_classes = CLASSES

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8 * 64, CLASSES)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


class Certifying:
    """Makes work, collects it, and hands shards over as the jobs do."""

    network_class = SmallNet

    def work(self, params, samples, count=4, **changes) -> CollectWork:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).float() / 255
        made = CollectWork(
            network=SmallNet().eval(),
            params=params,
            images=images,
            labels=np.zeros(count, np.int32),
            item_index=np.arange(10, 10 + count, dtype=np.uint32),
            samples=samples,
            seed64=0x0123456789ABCDEF,
            device="cpu",
            batch_size=64,
            numerics="exact",
            noise_backend="eager",
            model_sha256="abc",
            variant="clean",
        )
        return dataclasses.replace(made, **changes)

    def part(self, work: CollectWork, start: int, stop: int) -> CollectWork:
        """The same work on items [start, stop)."""
        return dataclasses.replace(
            work,
            images=work.images[start:stop],
            labels=work.labels[start:stop],
            item_index=work.item_index[start:stop],
        )

    def shard(self, plugin, work: CollectWork, path="a.parquet") -> Shard:
        columns, identity = plugin.collect(work)
        columns = dict(columns)
        slot = np.asarray(columns.pop("slot"))
        assert set(columns) == set(plugin.stats_columns)
        rows = {**columns, "item_index": work.item_index[slot]}
        return Shard(Path(path), pa.table(rows), json.loads(json.dumps(identity)))


@pytest.fixture
def certifying() -> Certifying:
    return Certifying()
