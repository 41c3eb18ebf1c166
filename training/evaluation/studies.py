"""A user study of two sets of clips: one page to send to people, and what their answers say."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from curation.settings import ConfigError

QUESTIONS = ("quality", "relevance")
CHOICES = ("a", "b", "tie")
Z = 1.959964  # of a 95% interval


@dataclass(frozen=True)
class Pair:
    """A clip of A and one of B for the same prompt."""

    name: str
    prompt: str
    a: Path
    b: Path


def find_pairs(a: Path, b: Path, prompts: Path | None) -> list[Pair]:
    """The clips of two folders by name.

    prompts: a JSON map of file names without ending to prompts; without it NAME.txt beside A's
        clips, as vf-eval --keep-clips writes.

    Raises ConfigError where one has no partner or no prompt.
    """
    clips = [{p.stem: p for p in sorted(folder.glob("*.mp4"))} for folder in (a, b)]
    alone = sorted(clips[0].keys() ^ clips[1].keys())
    if alone or not clips[0]:
        told = f"{len(alone)} clips have no partner ({', '.join(alone[:3])})" if alone else "no mp4"
        raise ConfigError(f"--a {a} --b {b}: {told}; give folders with the same names of clips")
    if prompts:
        try:
            known = dict(json.loads(prompts.read_text()))
        except (OSError, ValueError, TypeError):
            raise ConfigError(f"--prompts {prompts}: give a JSON map of names to prompts") from None
    else:
        known = {p.stem: p.read_text().strip() for p in a.glob("*.txt")}
    missing = [name for name in clips[0] if name not in known]
    if missing:
        raise ConfigError(f"no prompt for {', '.join(missing[:3])}: give --prompts FILE.json")
    return [Pair(name, known[name], path, clips[1][name]) for name, path in clips[0].items()]


def page(pairs: Sequence[Pair]) -> str:
    """The study as one HTML file that holds its clips; order and sides are drawn for each rater."""
    told: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    for pair in pairs:
        media = [path.read_bytes() for path in (pair.a, pair.b)]
        for part in (pair.name.encode(), pair.prompt.encode(), *media):
            digest.update(hashlib.sha256(part).digest())
        a, b = ("data:video/mp4;base64," + base64.b64encode(m).decode() for m in media)
        told.append({"name": pair.name, "prompt": pair.prompt, "a": a, "b": b})
    data = json.dumps({"study": digest.hexdigest()[:16], "pairs": told}).replace("<", "\\u003c")
    source = (Path(__file__).parent / "study.html.j2").read_text()
    return jinja2.Environment(autoescape=True).from_string(source).render(pairs=told, data=data)


def read_answers(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The files that raters saved; ConfigError for another file, two studies or a rater twice."""
    found = []
    for path in paths:
        try:
            answers = json.loads(path.read_text())
            good = all(
                each["question"] in QUESTIONS and each["chosen"] in CHOICES and each["pair"]
                for each in answers["answers"]
            )
            _ = answers["study"], answers["rater"]
        except (OSError, ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise ConfigError(f"{path} holds no answers of a study")
        found.append(answers)
    if len({each["study"] for each in found}) != 1:
        raise ConfigError("give files of one study: these are of several, or there are none")
    raters = Counter(each["rater"] for each in found)
    twice = [name for name, count in raters.items() if count > 1]
    if twice:
        raise ConfigError(f"two files of rater {twice[0]}: give each rater's last one")
    return found


@dataclass(frozen=True)
class Outcome:
    """Of one question: counts, the share of A among those that chose, agreement.

    kappa: Fleiss' over a, b and tie; NaN where no pair has two raters, or all say the same always.
    """

    question: str
    a: int
    b: int
    ties: int
    interval: tuple[float, float]
    agreement: float
    kappa: float

    def __str__(self) -> str:
        chosen, every = self.a + self.b, self.a + self.b + self.ties
        share = f"{self.a / chosen:.1%}" if chosen else "nothing"
        low, high = self.interval
        return (
            f"{self.question}: A preferred {share} [{low:.1%}, {high:.1%}] of {chosen} choices; "
            f"{self.ties} of {every} no difference; raters agree {self.agreement:.1%}, "
            f"kappa {self.kappa:.2f}"
        )


def outcome(answers: Sequence[dict[str, Any]], question: str) -> Outcome:
    """What raters said to one question. The interval takes their judgements as independent."""
    by_pair: dict[str, Counter[str]] = {}
    for rater in answers:
        last = {x["pair"]: x["chosen"] for x in rater["answers"] if x["question"] == question}
        for pair, chosen in last.items():
            by_pair.setdefault(pair, Counter())[chosen] += 1
    table = np.array([[counts[c] for c in CHOICES] for counts in by_pair.values()]).reshape(-1, 3)
    a, b, ties = (int(n) for n in table.sum(0))
    agreement, kappa = fleiss(table)
    return Outcome(question, a, b, ties, wilson(a, a + b), agreement, kappa)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); all of 0..1 without a trial."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, Z**2 / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    return middle - half, middle + half


def fleiss(table: np.ndarray) -> tuple[float, float]:
    """Mean share of agreeing pairs of raters, and Fleiss' kappa (1971): how far beyond chance.

    table: [subjects, categories], how many raters chose what; subjects with one rater are left out.
    """
    table = table[table.sum(1) > 1].astype(float)
    if not len(table):
        return float("nan"), float("nan")
    n = table.sum(1)
    agreement = float(((table * (table - 1)).sum(1) / (n * (n - 1))).mean())
    chance = float(((table.sum(0) / table.sum()) ** 2).sum())
    return agreement, (agreement - chance) / (1 - chance) if chance < 1 else float("nan")
