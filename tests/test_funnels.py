"""What is missing is said: clips without captions, and every rule that a dropped clip breaks."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from curation.funnels import FUNNEL_COLUMNS, count, show
from curation.pipelines import Rule
from curation.shards import LEDGER_SCHEMA, SHARD_SCHEMA, Dataset
from curation.why import also, rules_of
from training.data.indexes import num_uncaptioned

CAPTIONS = ["a dog", None, None, "a cat", None]
DECISIONS = ["kept", "kept", "kept", "kept", "dropped"]


def ledger(captions: list[str | None], decisions: list[str]) -> pa.Table:
    empty: dict[str, Any] = dict.fromkeys(LEDGER_SCHEMA.names) | {"attempts": 1}
    video = empty | {"level": "video", "video_id": "v", "source_url": "v", "decision": "kept"}
    clips = [
        video | {"level": "clip", "duration": 1.0, "caption": caption, "decision": decision}
        for caption, decision in zip(captions, decisions, strict=True)
    ]
    return pa.Table.from_pylist([video, *clips], LEDGER_SCHEMA).select(FUNNEL_COLUMNS)


def shown(captions: list[str | None], decisions: list[str], folder: Path) -> str:
    console = Console(record=True, width=100, file=io.StringIO())
    show(count([ledger(captions, decisions)], []), Dataset.at(folder), console)
    return console.export_text()


def test_kept_clips_without_a_caption_are_counted(tmp_path: Path) -> None:
    twice = count([ledger(CAPTIONS, DECISIONS), ledger(CAPTIONS, DECISIONS)], [])
    assert twice.num_uncaptioned == 4 and twice.as_json()["num_uncaptioned"] == 4
    told = shown(CAPTIONS, DECISIONS, tmp_path)
    assert "2 of 4 kept clips have no caption: trained as the empty prompt" in told
    assert "the kept clip has no caption" in shown([None], ["kept"], tmp_path)
    assert "no caption" not in shown(["a"], ["kept"], tmp_path)


@pytest.mark.parametrize("statistics", [True, ["clip_id"]])
def test_training_counts_them_by_the_footer_or_by_reading(
    tmp_path: Path, statistics: bool | list[str]
) -> None:
    empty = {name: None for name in SHARD_SCHEMA.names}
    schema = pa.schema([field.with_nullable(True) for field in SHARD_SCHEMA])
    table = pa.Table.from_pylist([empty | {"caption": caption} for caption in CAPTIONS], schema)
    path = tmp_path / "s.parquet"
    pq.write_table(table, path, row_group_size=3, write_statistics=statistics)
    with pq.ParquetFile(path) as file:
        assert [num_uncaptioned(file, group) for group in range(2)] == [2, 1]
    pq.write_table(table.drop_columns(["caption"]), path, row_group_size=3)
    with pq.ParquetFile(path) as file:
        assert [num_uncaptioned(file, group) for group in range(2)] == [3, 2]


@pytest.mark.parametrize(
    ("run", "names"),
    [
        (b"not json", []),
        (b"[1]", []),
        (b'{"pipeline": {"rules": {"duration": 3}}}', []),
        (b'{"pipeline": {"rules": {"duration": {"min": 2}}}}', ["duration"]),
        (b'{"pipeline": null, "resolved": {"motion": {"min": 0.5, "max": null}}}', ["motion"]),
    ],
)
def test_whatever_a_run_json_holds_ends_nothing(
    tmp_path: Path, run: bytes, names: list[str]
) -> None:
    (tmp_path / "run.json").write_bytes(run)
    assert list(rules_of(Dataset.at(tmp_path))) == names


def test_a_dropped_clip_tells_every_rule_that_it_breaks() -> None:
    rules = {
        "resolution": Rule(min=720),
        "duration": Rule(min=2),
        "watermark": Rule(max=0.5),
        "static": Rule(max=0.9),
        "motion": Rule(min=1),
    }
    row = {"decision": "dropped", "rule": "duration", "resolution": 1080.0, "duration": 1.0}
    row |= {"watermark": 0.75, "static": 0.95, "motion": None}
    assert (
        also(row, rules) == "it also breaks watermark (0.75, bound 0.5), static (0.95, bound 0.9)"
    )
    assert also(row | {"watermark": 0.5, "static": 0.0}, rules) == ""
    assert also(row | {"decision": "kept", "rule": None}, rules) == ""
