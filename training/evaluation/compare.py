"""A result in words, and two of them beside each other if they may be compared at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from curation.settings import ConfigError

LOWER_IS_BETTER = {"fvd"}
HIGHER_IS_BETTER = {"clipsim"}


def read_result(path: Path) -> dict[str, Any]:
    """A result.json; ConfigError for another file."""
    try:
        result = json.loads(path.read_text())
        _ = result["hash"], result["scores"], result["items"], result["networks"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no result.json of vf-eval") from None
    return result


def compare(first: Path, second: Path) -> list[str]:
    """Lines that tell how two results differ.

    Raises ConfigError unless protocol, items, real clips and networks are the same.
    """
    a, b = read_result(first), read_result(second)
    checks = {
        "protocol": (f"{a['name']}", f"{b['name']}"),
        "hash of the protocol": (a["hash"], b["hash"]),
        "prompts and seeds": (a["items"], b["items"]),
        "real clips": (a["reference_sha256"], b["reference_sha256"]),
        "networks": (told(a["networks"], b["networks"]), told(b["networks"], a["networks"])),
    }
    for name, (left, right) in checks.items():
        if left != right:
            raise ConfigError(f"not comparable: {name}: {left} against {right}")
    lines = [a["name"], f"A {first}", f"B {second}"]
    for name in dict.fromkeys([*a["scores"], *b["scores"]]):
        left, right = a["scores"].get(name), b["scores"].get(name)
        lines.append(line(name, left, right) if left and right
                     else f"{name}: not measured in {'B' if left else 'A'}")  # fmt: skip
    return lines


def lines_of(result: dict[str, Any]) -> list[str]:
    """A line for each score of a result, with its interval; FVD's with N and the covariance."""
    lines = []
    for name, score in result["scores"].items():
        low, high = score["interval"]
        text = f"{shown(name, score)} {score['value']:.4g}, 95% [{low:.4g}, {high:.4g}]"
        if name == "fvd":
            by_n = ", ".join(f"{n}: {value:.4g}" for n, value in score["by_n"].items())
            text += f", N {result['n']}, covariance {score['covariance']}"
            text += f"; by N {by_n}; at infinity {score['at_infinity']:.4g}"
        elif "of_real_clips" in score:
            text += f"; real clips {score['of_real_clips']:.4g}"
        lines.append(text)
    return lines


def told(networks: dict[str, Any], others: dict[str, Any]) -> str:
    """The networks that the other result has too: what one alone measured is not compared."""
    return ", ".join(
        f"{name} {each['label']} {each['sha256'][:12]}"
        for name, each in networks.items()
        if name in others
    )


def line(name: str, a: dict[str, Any], b: dict[str, Any]) -> str:
    """One score: both values with their intervals, and what may be said of them."""
    (low_a, high_a), (low_b, high_b) = a["interval"], b["interval"]
    text = (f"{shown(name, a)}: A {a['value']:.4g} [{low_a:.4g}, {high_a:.4g}], "
            f"B {b['value']:.4g} [{low_b:.4g}, {high_b:.4g}]")  # fmt: skip
    if low_a <= high_b and low_b <= high_a:
        return f"{text}: the intervals overlap, neither is better"
    lower = "A" if a["value"] < b["value"] else "B"
    higher = "B" if lower == "A" else "A"
    if name in LOWER_IS_BETTER:
        return f"{text}: {lower} is better"
    if name in HIGHER_IS_BETTER:
        return f"{text}: {higher} is better"
    return f"{text}: {higher} has more"


def shown(name: str, score: dict[str, Any]) -> str:
    """A score's name; that its features are untrained is part of it."""
    return f"{name} (untrained-features)" if score.get("features") == "untrained-features" else name
