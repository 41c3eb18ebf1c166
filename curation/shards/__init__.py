"""A dataset folder: its schema, its commits, how it is written and read (docs/shards.md).

    run.json                  config, fingerprints, funnel, cost of the last run
    shards/<name>.parquet     kept clips
    ledger/<name>.parquet     every video and candidate clip decided in this commit
    manifest/<name>.json      written last: the commit exists if and only if this does

A folder is a local path or any pyarrow filesystem URI. Needs pyarrow alone.
"""

from curation.shards.commits import write_commit, write_table, write_tables
from curation.shards.folders import NUM_READERS, Dataset, DatasetError, own_scores
from curation.shards.held_out import held_out_hash, is_held_out
from curation.shards.schema import (
    DROPPED,
    FAILED,
    KEPT,
    LEDGER_SCHEMA,
    SCHEMA_VERSION,
    SHARD_SCHEMA,
    conform,
    with_own,
)

__all__ = [
    "DROPPED",
    "FAILED",
    "KEPT",
    "LEDGER_SCHEMA",
    "NUM_READERS",
    "SCHEMA_VERSION",
    "SHARD_SCHEMA",
    "Dataset",
    "DatasetError",
    "conform",
    "held_out_hash",
    "is_held_out",
    "own_scores",
    "with_own",
    "write_commit",
    "write_table",
    "write_tables",
]
