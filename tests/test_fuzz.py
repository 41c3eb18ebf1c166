"""Damaged files of every container end in an outcome: the first 200 of benchmarks/fuzz.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from fuzz import CONTAINERS, Found, fuzz, make_seeds

NUM_FILES = 200


def test_damaged_files_end_in_an_outcome(tmp_path: Path) -> None:
    found = Found()
    assert list(fuzz(make_seeds(tmp_path), range(NUM_FILES), tmp_path, found)) == [
        *range(NUM_FILES)
    ]
    assert found.died == [] and found.broken == []
    total = found.total()
    assert total.total() == NUM_FILES and found.outcomes.keys() == CONTAINERS.keys()
    # The mutations are neither too mild nor too hard to say anything.
    assert total["kept"] > 20 and total["not_video"] > 20 and total["corrupt, partial"] > 10
