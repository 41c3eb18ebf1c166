"""Facts, charts and sheets -> pages: the report, the comparison, the dataset card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.pages import charts
from curation.pages.cuts import unsure_cuts
from curation.pages.facts import (
    FAILURE_COLUMNS,
    Facts,
    caption_words,
    changed_decisions,
    facts_of,
    failures,
    fit,
    integrity,
    shares,
)
from curation.pages.listed import listed
from curation.pages.pictures import previews
from curation.pages.sheets import Sheet, sheets, with_pictures
from curation.scores.table import UNITS
from curation.shards import Dataset

MAX_CHANGED = 24
SIZE_CATEGORIES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"),
                   (1e7, "1M<n<10M"), (1e8, "10M<n<100M"), (1e9, "100M<n<1B"))  # fmt: skip


def environment() -> jinja2.Environment:
    """Templates of this package; everything shown is escaped, nothing undefined passes."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["markdown"] = as_markdown
    found.filters["number"] = lambda value: f"{value:,}".replace(",", " ")
    found.filters["short"] = lambda value: "not scored" if value is None else f"{value:.4g}"
    found.filters["share"] = lambda part, whole: f"{part / whole:.1%}" if whole else "0%"
    return found


# What means something in Markdown or in the HTML that it may hold. Hubs make links of bare
# addresses, too.
MARKED = re.compile(r"[\\`*_{}\[\]()#+!|~$<>&@\"]|:(?=//)|(?<=www)\.|^[-=]", re.IGNORECASE)


def as_markdown(text: object) -> str:
    r"""Somebody's text as one line that Markdown shows as it is.

    >>> as_markdown("[a](javascript:b) <i>")
    '\\[a\\]\\(javascript:b\\) &#60;i&#62;'
    """
    line = " ".join(str(text).split())
    return MARKED.sub(lambda m: f"&#{ord(m[0])};" if m[0] in '<>&:@"' else f"\\{m[0]}", line)


def write(dataset: Dataset, output: str | None, name: str, text: str) -> str:
    """Write a page to a given path, or under a name in the dataset folder; returns where."""
    if output is None:
        dataset.write_bytes(text.encode(), name)
        return dataset.path(name) if dataset.is_local else f"{dataset.uri}/{name}"
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Path(output).write_text(text)
    return output


# -- the report


def write_report(dataset: Dataset, output: str | None, num_playing: int = 0) -> str:
    """Write report.html, with the media of `num_playing` clips inside; returns its path."""
    found = facts_of(dataset)
    failed = failures(dataset.ledger(FAILURE_COLUMNS))
    cuts, num_cuts = unsure_cuts(dataset, found)
    text = environment().get_template("report.html.j2").render(
        name=dataset.uri.rstrip("/").rsplit("/", 1)[-1],
        uri=dataset.uri,
        found=found,
        failures=failed,
        failed_pictures=previews(dataset, [row["clip_id"] for row in failed if row["clip_id"]]),
        integrity=integrity(found.kept, found.clips),
        fit=fit(found),
        figures=kept_figures(found),
        score_figures=score_figures(found),
        unscored=[name for name in found.score_names if not len(found.scores(name)[0])],
        sheets=sheets(dataset, found),
        cuts=cuts,
        num_cuts=num_cuts,
        listed=listed(dataset, found, num_playing),
    )  # fmt: skip
    return write(dataset, output, "report.html", text)


def kept_figures(found: Facts) -> dict[str, str]:
    """The paper's statistics of the kept clips, by title."""
    kept = found.kept
    if not len(kept):
        return {}
    size = pc.binary_join_element_wise(
        pc.cast(kept["width"], "string"), pc.cast(kept["height"], "string"), "x"
    )
    figures = {
        "Categories": charts.bars(shares(kept["category"]), "clips"),
        "Clip duration": charts.histogram(kept["duration_s"].to_numpy(), "seconds"),
    }
    words = caption_words(kept["caption"])
    if len(words):
        figures["Caption length"] = charts.histogram(words, "words")
    figures["Resolution"] = charts.bars(shares(size), "clips")
    figures["Frame rate"] = charts.histogram(kept["fps"].to_numpy(), "frames per second")
    figures["Licences"] = charts.bars(shares(kept["license"]), "clips")
    for score, title in (("aesthetic", "Aesthetic score"), ("motion", "Motion")):
        values, is_kept = found.scores(score)
        if is_kept.any():
            figures[title] = charts.histogram(values[is_kept], UNITS[score] or score)
    return figures


def score_figures(found: Facts) -> dict[str, str]:
    """A chart per score that was measured, those with a rule first, in config order."""
    out = {}
    for name in dict.fromkeys([*found.rules, *found.score_names]):
        known = name in found.score_names
        values, kept = found.scores(name) if known else (np.empty(0), np.empty(0, bool))
        if len(values):
            bounds = found.rules.get(name, {})
            pair = (bounds.get("min"), bounds.get("max"))
            out[name] = charts.score_chart(name, UNITS.get(name, ""), values, kept, pair)
    return out


# -- two runs


def write_comparison(a: Dataset, b: Dataset, output: str | None) -> str:
    """Write the comparison of two datasets into the second; returns its path."""
    of_a, of_b = facts_of(a), facts_of(b)
    names = (a.uri, b.uri)
    changed = changed_decisions(of_a.clips, of_b.clips)
    rules = list(dict.fromkeys(s.rule for s in [*of_a.steps, *of_b.steps]))
    names_of_both = [name for name in of_a.score_names if name in of_b.score_names]
    both = {name: (of_a.scores(name)[0], of_b.scores(name)[0]) for name in names_of_both}
    text = environment().get_template("comparison.html.j2").render(
        names=names,
        found=(of_a, of_b),
        rules=[(rule, *(step_of(each, rule) for each in (of_a, of_b))) for rule in rules],
        changed=change_counts(changed),
        num_changed=len(changed),
        sheets=changed_sheets(a, b, of_b, changed),
        figures={
            name: charts.overlaid(name, x, y, names)
            for name, (x, y) in both.items()
            if len(x) and len(y)
        },
    )  # fmt: skip
    return write(b, output, "comparison.html", text)


def step_of(found: Facts, rule: str) -> Any:
    return next((step for step in found.steps if step.rule == rule), None)


def change_counts(changed: pa.Table) -> list[dict[str, Any]]:
    """Clips by what each run decided, most first."""
    groups = changed.group_by(["decision", "rule", "decision_b", "rule_b"]).aggregate(
        [("clip_id", "count")]
    )
    return sorted(groups.to_pylist(), key=lambda row: -row["clip_id_count"])


def changed_sheets(a: Dataset, b: Dataset, of_b: Facts, changed: pa.Table) -> list[Sheet]:
    """Clips that only one of the runs kept."""
    out = []
    for title, column in (("kept by the second alone", "decision_b"),
                          ("kept by the first alone", "decision")):  # fmt: skip
        ids = changed.filter(pc.equal(changed[column], "kept"))["clip_id"]
        rows = of_b.clips.filter(pc.is_in(of_b.clips["clip_id"], ids.combine_chunks()))
        rows = rows.slice(0, MAX_CHANGED)
        pictures = previews(a, rows["clip_id"].to_pylist())
        pictures |= previews(b, rows["clip_id"].to_pylist())
        if len(rows):
            out.append(Sheet(title, f"of {len(ids)}", with_pictures(rows, pictures)))
    return out


# -- the card


def write_card(dataset: Dataset) -> str:
    """Write README.md in the form in which hubs show a dataset; returns its path."""
    found = facts_of(dataset)
    size = next((name for most, name in SIZE_CATEGORIES if len(found.kept) < most), "n>1B")
    durations = found.kept["duration_s"].to_numpy()
    words = caption_words(found.kept["caption"])
    text = environment().get_template("card.md.j2").render(
        name=dataset.uri.rstrip("/").rsplit("/", 1)[-1],
        found=found,
        size=size,
        durations=np.percentile(durations, [5, 50, 95]) if len(durations) else None,
        words=float(words.mean()) if len(words) else None,
        integrity=integrity(found.kept, found.clips),
        categories=shares(found.kept["category"]),
        licences=shares(found.kept["license"]),
        caption_models=shares(found.kept["caption_model"]),
        videos=len(pc.unique(found.clips["video_id"])),
    )  # fmt: skip
    return write(dataset, None, "README.md", text)
