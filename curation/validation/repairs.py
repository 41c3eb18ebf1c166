"""Back to the last good state: what is broken is taken out, so that the next run does it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from curation.flow.holdings import forget, is_subset
from curation.places import only_writer
from curation.shards import Dataset
from curation.validation.commits import Problem


@dataclass(frozen=True)
class Repair:
    """What was taken out of a dataset."""

    commits: tuple[str, ...]  # whole ones
    video_ids: tuple[str, ...]  # of commits whose other videos stay
    files: tuple[str, ...]  # of no commit


def repair(dataset: Dataset, problems: Sequence[Problem]) -> Repair:
    """Take out what is broken: a video where only that is, else its commit.

    Of a subset always the commit, which vf-clean makes again from its dataset. Raises ConfigError
    where a run is writing to the folder.
    """
    broken = {p.commit for p in problems if p.commit and p.video_id is None}
    with only_writer(dataset):
        dataset.claim()
        for name in broken:
            dataset.delete_commit(name)
        commits = dataset.manifests()
        at = {(p.commit, p.video_id) for p in problems if p.video_id and p.commit not in broken}
        for commit in commits:
            lost = {video_id for name, video_id in at if name == commit["name"] and video_id}
            if lost and is_subset(commit):
                dataset.delete_commit(commit["name"])
                broken.add(commit["name"])
            elif lost:
                forget(dataset, lost, [commit])
        files = dataset.sweep()
    videos = sorted({video_id for name, video_id in at if name not in broken and video_id})
    return Repair(tuple(sorted(broken)), tuple(videos), tuple(files))
