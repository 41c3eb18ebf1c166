"""What training says of each clip, beside the dataset that it was trained on.

    train_signal/<name>.parquet    written by vf-train, a file per run; read by vf-clean, vf-report

A clip's loss says little: it depends on the timestep that was drawn far more than on the clip. So
each loss is divided by the mean loss of its timestep at that time of the run, and these ratios are
averaged over the clip's epochs: above 1 it is learned worse than most, below 1 better. Ours: the
idea is that of data maps (Swayamdipta et al. 2020, arXiv 2009.10795), mean and spread over epochs.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from curation.shards.commits import write_table
from curation.shards.folders import Dataset, DatasetError
from curation.shards.schema import conform

FOLDER = "train_signal"
RELATIVE_LOSS = "relative_loss"  # the name of the rule, too
AVERAGE = 1.0  # of a clip that was not trained on

SIGNAL_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("num_losses", pa.int32(), nullable=False),
        pa.field(RELATIVE_LOSS, pa.float64(), nullable=False),  # mean
        pa.field("spread", pa.float64(), nullable=False),  # standard deviation; 0 of one loss
    ]
)


def signal_names(dataset: Dataset) -> list[str]:
    """The runs that left a file."""
    return dataset.names(FOLDER, ".parquet")


def read_signal(dataset: Dataset, name: str) -> pa.Table:
    """SIGNAL_SCHEMA, a row per clip; DatasetError where there is none of that name."""
    path = dataset.path(FOLDER, f"{name}.parquet")
    try:
        with pq.ParquetFile(path, filesystem=dataset.filesystem) as file:
            return conform(file.read(), SIGNAL_SCHEMA)
    except FileNotFoundError:
        there = ", ".join(signal_names(dataset)) or "none"
        raise DatasetError(
            f"{dataset.uri} has no {FOLDER}/{name}.parquet; there is: {there}. "
            "vf-train --set train_signal=true writes one, by the name of its --output"
        ) from None


def write_signal(dataset: Dataset, name: str, rows: pa.Table, facts: Mapping[str, str]) -> None:
    """Write or replace a run's file; `facts` of the run go into its metadata."""
    schema = SIGNAL_SCHEMA.with_metadata(dict(facts))
    write_table(dataset, FOLDER, name, [rows.cast(schema)], schema)
