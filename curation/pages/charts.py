"""Facts as pictures: small SVGs for a page that works offline."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from curation.pages.facts import kept_share

# Seen on white and on black, and apart by colour-blind eyes; black is drawn as the page's ink.
KEPT_COLOUR, DROPPED_COLOUR = "#3d85c6", "#cf7a20"
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "videofactory",  # the same data, the same bytes
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "xtick.color": "#999999",
    "ytick.color": "#999999",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "figure.facecolor": "none",  # the page's, light or dark
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
NUM_BINS = 40
SIDES = {"min": "-", "max": ":"}  # of a rule, and the line of its curve


def svg(figure: Figure) -> str:
    sink = io.StringIO()
    said = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # nothing but the picture
    figure.savefig(sink, format="svg", metadata=said, bbox_inches="tight")
    text = sink.getvalue()
    return text[text.index("<svg") :]


@contextmanager
def chart(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty chart, in inches, that is drawn and written inside; pyplot does not know of it."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        yield figure, figure.subplots()


def edges_of(values: np.ndarray) -> np.ndarray:
    """Bin edges that a few outliers do not stretch: between the 0.5 and 99.5 percentiles."""
    low, high = np.percentile(values, [0.5, 99.5])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, NUM_BINS + 1)


def histogram(values: np.ndarray, label: str) -> str:
    """One set of values; the two end bins hold what lies beyond them."""
    with chart(4.2, 2.2) as (figure, axes):
        edges = edges_of(values)
        axes.hist(np.clip(values, edges[0], edges[-1]), bins=edges.tolist(), color=KEPT_COLOUR)
        axes.set_xlabel(label)
        axes.set_ylabel("clips")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return svg(figure)


def score_chart(
    name: str,
    unit: str,
    values: np.ndarray,
    kept: np.ndarray,
    bounds: tuple[float | None, float | None],
) -> str:
    """A score over all candidate clips, kept and not; its bounds; and the share that is kept as
    the bound moves."""
    low, high = bounds
    with chart(4.6, 2.6) as (figure, axes):
        marks = np.array([b for b in (low, high) if b is not None])
        edges = edges_of(np.concatenate([values, marks]))
        shown = np.clip(values, edges[0], edges[-1])
        axes.hist(
            [shown[kept], shown[~kept]],
            bins=edges.tolist(),
            stacked=True,
            color=[KEPT_COLOUR, DROPPED_COLOUR],
            label=["kept", "dropped, by any rule"],
        )
        axes.set_xlabel(f"{name} ({unit})" if unit else name)
        axes.set_ylabel("clips")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        draw_bounds(axes, bounds)
        draw_curves(axes, edges, keep_curves(values, edges, bounds))
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2)
        return svg(figure)


def draw_bounds(axes: Axes, bounds: tuple[float | None, float | None]) -> None:
    for bound, side in zip(bounds, SIDES, strict=True):
        if bound is not None:
            axes.axvline(bound, color="k", linewidth=1.2, linestyle="--")
            axes.annotate(
                f"{side} {bound:g}", (bound, 1.0), xycoords=("data", "axes fraction"),
                fontsize=8, ha="left", va="bottom",
            )  # fmt: skip


def keep_curves(
    values: np.ndarray, at: np.ndarray, bounds: tuple[float | None, float | None]
) -> dict[str, np.ndarray]:
    """The share of values that each of a rule's bounds alone would keep if it were at `at`."""
    return {
        side: kept_share(values, at, keep_above=side == "min")
        for bound, side in zip(bounds, SIDES, strict=True)
        if bound is not None
    }


def draw_curves(axes: Axes, at: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    if not curves:
        return
    beside = axes.twinx()
    for side, shares in curves.items():
        beside.plot(at, shares, color="k", linewidth=1.1, linestyle=SIDES[side])
    beside.set_ylim(0, 1.05)
    beside.set_ylabel(f"share kept by {' or '.join(curves)}")


def bars(counts: Sequence[tuple[str, int]], label: str) -> str:
    """Counts by name, the largest on top."""
    with chart(4.2, 0.5 + 0.24 * len(counts)) as (figure, axes):
        names = [name if len(name) <= 32 else name[:31] + "…" for name, _ in counts]
        drawn = axes.barh(range(len(counts)), [n for _, n in counts], color=KEPT_COLOUR)
        axes.set_yticks(range(len(counts)), names)
        axes.bar_label(drawn, fontsize=8, padding=2)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return svg(figure)


def overlaid(name: str, a: np.ndarray, b: np.ndarray, labels: tuple[str, str]) -> str:
    """One score of two runs, each as a share of its own clips."""
    with chart(4.6, 2.4) as (figure, axes):
        edges = edges_of(np.concatenate([a, b]))
        for values, label, colour in zip(
            (a, b), labels, (DROPPED_COLOUR, KEPT_COLOUR), strict=True
        ):
            if len(values):
                weights = np.full(len(values), 1 / len(values))
                shown = np.clip(values, edges[0], edges[-1])
                axes.hist(shown, bins=edges.tolist(), weights=weights, histtype="step", lw=1.5,
                          color=colour, label=f"{label} ({len(values)})")  # fmt: skip
        axes.set_xlabel(name)
        axes.set_ylabel("share of scored clips")
        axes.legend(fontsize=8, frameon=False)
        return svg(figure)
