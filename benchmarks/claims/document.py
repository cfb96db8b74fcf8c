"""docs/claims.md and docs/paper-claims.md: templates filled with the figures of the result files.

The README's short table is made of the same files.

Enters: *.md.jinja and docs/claims/*.json. Leaves: the pages, or what differs from them. Templates
hold no result but a pilot's: each is asked of `Figures`, so that a number on the page can neither
be mistyped nor outlive the file that it came from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.claims.figures import REFERENCE, Difference, Figures
from benchmarks.claims.heads import (
    answer_of_curve,
    differences_table,
    end_to_end_table,
    goal_of_heads,
    heads_table,
    num_comparisons,
    others_above,
    pilots_table,
    tell_narrowest,
    tell_steady,
    ten_against_one,
    trained_deep,
    udl_table,
    verdicts_of_heads,
    versus_table,
)
from benchmarks.claims.readme import README, with_table
from benchmarks.claims.regimes import (
    BY_NAME,
    CONTROLS,
    CURVE,
    END_TO_END,
    NEW,
    REGIMES,
    ROOT,
    STUDIES,
    UDL,
    Regime,
)
from benchmarks.claims.results import RESULTS, result_file
from benchmarks.claims.search import Search, common_rate_table
from benchmarks.claims.trainings import settle
from benchmarks.claims.verdicts import (
    claims_table,
    markdown,
    order_table,
    routes_table,
    verdict,
    verdicts_table,
)
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.metrics.ablation import PAPER_ROWS, paper_figures

PAGE = ROOT / "docs" / "claims.md"
PAPER_PAGE = ROOT / "docs" / "paper-claims.md"
PILOTS = "pilots.json"
COMMAND = "python -m benchmarks.claims document"


def render(results: Path = RESULTS) -> str:
    """docs/claims.md as the result files have it; regimes without a file are said to be missing."""
    found = read_all((*NEW, *CONTROLS, *CURVE), results)
    template = _environment().get_template("claims.md.jinja")
    present = [found[one.name] for one in (*NEW, *CONTROLS) if one.name in found]
    return template.render(
        regimes=(*NEW, *CONTROLS),
        present=present,
        new=[found[one.name] for one in NEW if one.name in found],
        goal_of_heads=goal_of_heads,
        former_heads=_former_heads(present),
        former_curve=_former_heads(found[one.name] for one in CURVE if one.name in found),
        curve=[found[regime.name] for regime in CURVE if regime.name in found],
        found=found,
        not_trained=not_trained,
        searched=searched,
        num_comparisons=num_comparisons,
        others_above=others_above,
        tell_narrowest=tell_narrowest,
        tell_steady=tell_steady,
        ten_against_one=ten_against_one,
        trained_deep=trained_deep,
        udl=read_all([UDL], results).get(UDL.name),
        udl_table=udl_table,
        end_to_end=read_json(result_file(END_TO_END, results))
        if is_there(END_TO_END, results)
        else None,
        pilots=read_json(results / PILOTS) if (results / PILOTS).exists() else None,
        pilots_table=pilots_table,
        heads_table=heads_table,
        answer_of_curve=answer_of_curve,
        differences_table=differences_table,
        end_to_end_table=end_to_end_table,
        versus_table=versus_table,
        verdicts_of_heads=verdicts_of_heads,
    )


def _former_heads(found: Iterable[Figures]) -> str:
    """Which figures are of a former default; empty where none is."""
    former = [one.regime.brief or one.regime.title for one in found if not _is_of_now(one)]
    told = "To be made again, trained as now"
    return f"{told}: {'; '.join(former)}." if former else ""


def _is_of_now(figures: Figures) -> bool:
    """Whether its experiment still has the head, the training and the search of its file."""
    now = _settings_of_now(figures.regime.name)
    of_file = figures.content
    sections = (now.head, of_file["settings"]["head"]), (now.train, of_file["settings"]["train"])
    searched_as = now.ablate.search_seeds, list(now.ablate.search)
    return searched_as == (of_file.get("search_seeds"), of_file.get("search")) and all(
        section.model_dump(mode="json") == kept for section, kept in sections
    )


@cache
def _settings_of_now(name: str) -> Settings:
    with TemporaryDirectory() as folder:
        return load_settings(settle(BY_NAME[name], Path(folder), []) / "params.yaml")


def searched(regime: Regime) -> str:
    """What its experiment tries, such as "learning rate 0.001, 0.002; mixup alpha 0.0, 0.4"."""
    asked = (one.partition("=") for one in _settings_of_now(regime.name).ablate.search)
    told = (f"{key.split('.')[-1]} {values.replace(',', ', ')}" for key, _, values in asked)
    return "; ".join(told).replace("_", " ")


def not_trained(regime: Regime, found: Mapping[str, Figures]) -> str:
    """The names of variants that the regime's experiment lists and its file lacks."""
    if regime.name not in found:
        return "all"
    listed = _settings_of_now(regime.name).ablate
    wanted = (one.name for one in listed.variants if one.name not in listed.leave_out)
    return ", ".join(name for name in wanted if name not in found[regime.name].variants)


def read_all(regimes: Iterable[Regime], results: Path = RESULTS) -> dict[str, Figures]:
    """The regimes that have a result file, by name."""
    return {one.name: Figures.read(one, results) for one in regimes if is_there(one, results)}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"points": points, "seeds_interval": seeds_interval, "percent": percent}
    environment.filters |= {"clips_interval": clips_interval, "said": said}
    environment.filters |= {"said_by_clips": said_by_clips, "verdict": verdict}
    return environment


def render_paper(results: Path = RESULTS) -> str:
    """docs/paper-claims.md, likewise."""
    found = read_all((*REGIMES, *STUDIES), results)
    searches = [Search(found[r.name], results) for r in REGIMES if Search.exists(r, results)]
    best = found | {one.regime.name: one.figures for one in searches}
    present = [best[regime.name] for regime in REGIMES if regime.name in best]
    return (
        _environment()
        .get_template("paper_claims.md.jinja")
        .render(
            regimes=REGIMES,
            found=found,
            common=[found[one.regime.name] for one in present],
            present=present,
            searches=searches,
            best=best,
            hours=training_hours(results),
            table=regime_table,
            verdicts_table=verdicts_table,
            claims_table=claims_table,
            routes_table=routes_table,
            order_table=order_table,
            common_rate_table=common_rate_table,
            readouts_table=readouts_table,
        )
    )


def measured(results: Path = RESULTS) -> list[Figures]:
    """The regimes that were trained; after a search each variant is at the rate that it chose."""
    found = [Figures.read(regime, results) for regime in REGIMES if is_there(regime, results)]
    return [
        Search(one, results).figures if Search.exists(one.regime, results) else one for one in found
    ]


def training_hours(results: Path = RESULTS) -> float:
    """What all trainings of the result files took, one after the other."""
    there = read_all(BY_NAME.values(), results).values()
    runs = [run for one in there for name in one.variants for run in one.runs(name).values()]
    return sum(run["train_seconds"] for run in runs) / 3600


def is_there(regime: Regime, results: Path = RESULTS) -> bool:
    """Whether it has a result file."""
    return result_file(regime, results).exists()


def _wanted(page: Path, paper: Path, readme: Path, results: Path) -> dict[Path, str]:
    """What each file should say."""
    wanted = {page: render(results), paper: render_paper(results)}
    if found := read_all(NEW, results):
        figures = list(found.values())
        wanted[readme] = with_table(readme.read_text(), figures, _former_heads(figures))
    return wanted


def write(
    page: Path = PAGE, paper: Path = PAPER_PAGE, readme: Path = README, results: Path = RESULTS
) -> None:
    """Write the pages, and the README's table."""
    for path, text in _wanted(page, paper, readme, results).items():
        path.write_text(text)


def compare(
    page: Path = PAGE, paper: Path = PAPER_PAGE, readme: Path = README, results: Path = RESULTS
) -> list[str]:
    """Lines in which the pages and the README differ from what the result files say."""
    pairs = [
        (path, path.read_text() if path.exists() else "", text)
        for path, text in _wanted(page, paper, readme, results).items()
    ]
    return [
        line
        for path, there, wanted in pairs
        for line in difflib.unified_diff(
            there.splitlines(), wanted.splitlines(), str(path), "result files", lineterm=""
        )
    ]


def regime_table(figures: Figures) -> str:
    """All variants of a regime: accuracy, difference to the full model, the paper's difference.

    After a search there is a column with the rate that each chose.
    """
    columns = ["variant", "rate", "top-1", "seeds", "minus the first, points", "95 % over seeds"]
    columns += ["95 % over clips", "p (Holm)", "paper"]
    has_paper = any(variant["table"] for variant in figures.variants.values())
    rows: list[list[str]] = []
    for name, variant in figures.variants.items():
        spread = figures.spread(name)
        top1 = f"{figures.top1(name):.1f}" + ("" if spread is None else f" ± {spread:.1f}")
        rate = f"{1000 * variant['rate']:g}e-3" if "rate" in variant else ""
        cells = [variant["title"], rate, top1, str(figures.num_seeds(name))]
        if name == REFERENCE:
            cells += [""] * 5
        else:
            one = figures.differences[name]
            p = "" if one.p_holm is None else f"{one.p_holm:.2g}"
            cells += [points(one), seeds_interval(one), clips_interval(one), p]
            cells.append(_paper(name, variant["table"]))
        rows.append(cells)
    everything = [columns, *rows]
    has_rate = any("rate" in variant for variant in figures.variants.values())
    shown = {"rate": has_rate, "paper": has_paper}
    kept = [n for n, column in enumerate(columns) if shown.get(column, True)]
    return markdown([[cells[n] for n in kept] for cells in everything])


def readouts_table(figures: Figures, reference: str = "attentive") -> str:
    """Heads of the study of readouts: size, accuracy, difference to the attentive probe."""
    rows = [
        ["head", "parameters", "top-1", "minus the attentive probe", "over seeds", "over clips"]
    ]
    for name, variant in figures.variants.items():
        spread = figures.spread(name)
        top1 = f"{figures.top1(name):.1f}" + ("" if spread is None else f" ± {spread:.1f}")
        cells = [variant["title"], f"{variant['num_parameters']:,}", top1]
        if name != reference:
            one = figures.versus(name, reference)
            cells += [points(one), seeds_interval(one), clips_interval(one)]
        rows.append(cells + [""] * (6 - len(cells)))
    return markdown(rows)


def points(difference: Difference) -> str:
    """Such as "+1.2"."""
    return f"{difference.points:+.1f}"


def said(difference: Difference, how: str) -> str:
    """Its points, for a sentence that says of it what its two intervals say.

    Args:
        how: "above" zero, "below", or "open": they don't agree on either.

    Raises:
        ValueError: They say something else: the sentence is to be written anew.
    """
    found = "above" if difference.is_above_zero else "open"
    found = "below" if difference.is_below_zero else found
    if found != how:
        raise ValueError(
            f"a sentence says {how}, but the intervals say {found}: {difference}; write it anew in "
            "benchmarks/claims/paper_claims.md.jinja"
        )
    return points(difference)


def said_by_clips(difference: Difference, how: str) -> str:
    """As `said`, for trainings of one seed: what the interval over clips alone says."""
    low, high = difference.clips_low, difference.clips_high
    return said(replace(difference, low=low, high=high), how)


def seeds_interval(difference: Difference) -> str:
    """Such as "-0.3 to +1.9"; empty with one seed."""
    if difference.low is None or difference.high is None:
        return ""
    return f"{difference.low:+.1f} to {difference.high:+.1f}"


def clips_interval(difference: Difference) -> str:
    """Such as "-0.3 to +1.9"."""
    return f"{difference.clips_low:+.1f} to {difference.clips_high:+.1f}"


def percent(value: float) -> str:
    """Such as "76.1"."""
    return f"{value:.1f}"


def _paper(name: str, tables: list[int]) -> str:
    """The paper's difference to its full model, where it has that row."""
    for number in tables:
        if name in PAPER_ROWS.get(number, {}):
            own, full = paper_figures(number, name), paper_figures(number, REFERENCE)
            if own and full:
                return f"{own['top1'] - full['top1']:+.1f}"
    return ""
