"""`report.html`: one self-contained page. The verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from llm_replicas.report.plots import pictures
from llm_replicas.slo.facts import RunFacts
from llm_replicas.slo.verdict import METRIC_WORDS, ObjectiveResult, Verdict, amount

SIGNS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "invalid": "!"}
SENTENCES = {
    "pass": "Every promise that this run tested is proved.",
    "fail": "At least one promise is refuted.",
    "inconclusive": "Something could be neither proved nor refuted. That is not a pass.",
    "invalid": "The load generator, the machine or the plan fell short: the run says nothing.",
}


class Tile(NamedTuple):
    """One key figure."""

    value: str
    label: str


class Bar(NamedTuple):
    """Where measured value, proved bound and limit lie, as percentages of the bar's width."""

    value: float | None
    bound: float | None
    limit: float


def write_html(path: Path, verdict: Verdict, facts: RunFacts) -> Path:
    """Write the page; returns its path."""
    path.write_text(to_html(verdict, facts), encoding="utf-8")
    return path


def to_html(verdict: Verdict, facts: RunFacts) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("llm_replicas.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"amount": _amount, "seconds": _seconds, "percent": _percent, "number": _number}
    provenance: dict[str, Any] = verdict.provenance
    return environment.get_template("report.html.j2").render(
        verdict=verdict,
        sign=SIGNS,
        sentence=SENTENCES[verdict.verdict],
        words=METRIC_WORDS,
        tiles=list(_tiles(verdict)),
        bars={objective.name: _bar(objective) for objective in verdict.objectives},
        pictures=pictures(verdict, facts),
        provenance=provenance,
        environment=list(_flat(provenance.get("environment") or {})),
        workload=list(_flat(provenance.get("workload") or {})),
    )


def _tiles(verdict: Verdict) -> Iterable[Tile]:
    yield Tile(f"{verdict.requests:,}", f"requests, {verdict.steady_requests:,} of them steady")
    yield Tile(f"{verdict.failed:,}", "failed without a token")
    yield Tile(f"{verdict.cut:,}", "cut in mid-answer")
    for objective in verdict.objectives:
        if objective.unit == "s" and objective.headroom is not None:
            yield Tile(f"{objective.headroom:.2f} x", f"{objective.name}: limit ÷ measured")
    for fault in verdict.faults:
        if fault.kind == "podKill" and fault.ttr_s is not None:
            yield Tile(_seconds(fault.ttr_s), "to recover from SIGKILL")
        if fault.kind == "podDelete" and fault.last_new_request_s is not None:
            yield Tile(_seconds(fault.last_new_request_s), "from delete to last new request")


def _bar(objective: ObjectiveResult) -> Bar | None:
    known = [each for each in (objective.value, objective.bound) if each is not None]
    full = max([objective.threshold, *known]) * 1.08
    if full <= 0:
        return None

    def place(value: float | None) -> float | None:
        return None if value is None else round(100 * value / full, 2)

    return Bar(place(objective.value), place(objective.bound), round(100 * objective.threshold / full, 2))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)


def _amount(value: float | None, unit: str) -> str:
    return "—" if value is None else amount(value, unit)


def _seconds(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f} s"


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value * 100:.3g} %"


def _number(value: float | None, digits: int = 0) -> str:
    return "—" if value is None else f"{value:,.{digits}f}"
