"""The bars of learning.py, and what was measured held against them."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from training.evaluation.paired import interval

# At most half the squared error (3 dB) of what knows less of the clip: its mean frame, the best of
# all stills; in the quick form its mean colour.
LESS_KNOWN, HALF_DB = {False: "still", True: "flat"}, 10 * math.log10(2)
# Share of samples that move as their caption says. Both captions of a thing start from one noise,
# so a model that ignores the direction makes one clip twice and is right half the time at most.
MOTION_BAR, MOTION_CHANCE = 0.9, 0.5
# Share of what there is to learn that may be left (`bins_of`). Nothing learned is 1; the best that
# mixes no frames leaves 0.54 or more in every bin (two frames), 0.66 (four): see the tests.
EXCESS_BAR = {False: 0.1, True: 0.25}
STANDARD_ERRORS = 3.0
Verdict = tuple[str, str, str, bool]  # what, measured, bar, met


def shares(runs: list[dict[str, Any]], key: str = "share_right") -> tuple[float, float, str]:
    """Mean, lower end of its 95% interval (minus infinity for one seed), both and each in words."""
    values = [each[key] for each in runs]
    low, high = interval(values) or (-math.inf, math.inf)
    told = f"{fmean(values):.0%} ({', '.join(f'{value:.0%}' for value in values)})"
    return fmean(values), low, told + (f" [{low:.0%}, {high:.0%}]" if len(values) > 1 else "")


def verdicts(found: dict[str, list[dict[str, Any]]], quick: bool) -> list[Verdict]:
    """Every bar."""
    rows = []
    for each in found.get("overfit", []):
        psnr, bar_db = each["psnr_db"], each[f"{LESS_KNOWN[quick]}_psnr_db"] + HALF_DB
        what = f"overfit: PSNR (best still {each['still_psnr_db']:.1f} dB, "
        what += f"one colour {each['flat_psnr_db']:.1f} dB)"
        rows.append((what, f"{psnr:.1f} dB", f"> {bar_db:.1f} dB", psnr > bar_db))
    if "motion" in found:
        (right, low, told), (control, _, control_told) = map(
            shares, (found["motion"], found["shuffled"])
        )
        one = len(found["motion"]) == 1
        rows += [
            ("motion: held-out combinations that go the caption's way", told,
             f">= {MOTION_BAR:.0%}", right >= MOTION_BAR),
            (f"motion: lower end of that, chance {MOTION_CHANCE:.0%}",
             "one seed: none" if one else f"{low:.0%}", f"> {MOTION_CHANCE:.0%}",
             one or low > MOTION_CHANCE),
            ("motion: the same, trained on shuffled captions", control_told,
             f"< {MOTION_BAR:.0%}", control < MOTION_BAR),
        ]  # fmt: skip
    bar = EXCESS_BAR[quick]
    for each in found.get("gaussian", []):
        for n, row in enumerate(each["bins"]):
            error, low = row["standard_error"], -STANDARD_ERRORS * row["standard_error"]
            met = low <= row["excess"] <= bar and abs(row["formula"]) <= STANDARD_ERRORS
            what = f"gaussian, timesteps {200 * n} to {200 * n + 199}: left of "
            what += f"{row['variance']:.3f} - {row['optimum']:.3f}"
            rows.append((what, f"{row['excess']:.3f} +- {error:.3f}", f"{low:.3f} to {bar}", met))
    return rows
