"""README.md of an export, as the Hugging Face hub shows a dataset."""

from __future__ import annotations

from typing import Any

from curation.exports.asked import Plan

# Categories of the hub's `size_categories`.
SIZES = (
    *((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")),
    *((1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M")),
)


def card(plan: Plan, clips: dict[str, Any]) -> str:
    """The card of an export with these counts: where its clips are, and whose they are."""
    size = next((name for most, name in SIZES if clips["exported"] < most), "10M<n<100M")
    left_out = ", ".join(f"{number:,} {why}" for why, number in clips["dropped"].items())
    files = "\n".join(f'    - "{each}"' for each in plan.layout.card_files)
    return f"""---
license: other
task_categories:
- text-to-video
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path:
{files}
---

# Video clips

{clips["exported"]:,} clips ({clips["duration_s"] / 3600:.2f} h, {clips["frames"]:,} frames), \
{clips["exported"] - clips["without_caption"]:,} of them with a caption, cut and filtered by \
VideoFactory's curation and written by `vf-export-clips --to {plan.layout.name}`. \
Left out: {left_out or "none"}.

`datasets.load_dataset("FOLDER", split="train")` has a row for each clip: \
{plan.layout.card_columns}; `export.json` says how the clips were made.

The clips belong to their authors: `source_url`, `uploader` and `license` say whose they are where \
the source did. Check that your use is allowed. If a clip shows you or your work and should \
not be here, tell the maintainers of this dataset its `clip_id`; all clips of a source share \
its `video_id`.
"""
