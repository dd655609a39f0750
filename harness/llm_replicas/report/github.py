"""GitHub Actions: annotations on the run and a summary on the job's page."""

from collections.abc import Iterable

from llm_replicas.slo.verdict import Verdict, amount

UNKNOWN = "—"
_LEVELS = {"fail": "error", "invalid": "error", "inconclusive": "warning", "pass": "notice"}
_SIGNS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "invalid": "⚠️"}


def annotation_lines(verdict: Verdict) -> list[str]:
    """Workflow commands, one a line, for everything that did not pass; a pass is one notice."""
    title = f"llm-replicas: {verdict.verdict.upper()}"
    if verdict.verdict == "pass":
        return [_command("notice", title, f"{verdict.requests} requests, every objective proved")]
    parts = [("invalid", "load generator", reason) for reason in verdict.generator.reasons]
    parts += [(each.verdict, each.name, each.text) for each in verdict.conditions]
    parts += [(each.verdict, each.name, each.reason) for each in verdict.objectives]
    parts += [(each.verdict, each.kind, "; ".join(each.reasons)) for each in verdict.faults]
    found = [_command(_LEVELS[word], f"{title}: {name}", text) for word, name, text in parts if word != "pass"]
    return found or [_command("error", title, "; ".join(verdict.reasons))]


def job_summary(verdict: Verdict) -> str:
    """Markdown for `$GITHUB_STEP_SUMMARY`."""
    return "\n".join(_summary(verdict)) + "\n"


def _summary(verdict: Verdict) -> Iterable[str]:
    yield f"## {_SIGNS[verdict.verdict]} {verdict.verdict.upper()}"
    yield ""
    stand_in = (
        " Stand-in numbers: the model behind this run is a stand-in." if verdict.provenance.get("stand_in") else ""
    )
    yield (
        f"{verdict.requests} requests, {verdict.failed} failed, {verdict.cut} cut; "
        f"confidence {verdict.confidence:.0%}.{stand_in}"
    )
    for reason in verdict.reasons:
        yield f"- {_cell(reason)}"
    if verdict.objectives:
        yield ""
        yield "| | Objective | Limit | Measured | Proved at most | n (effective) | Exceed |"
        yield "|---|---|---|---|---|---|---|"
        for each in verdict.objectives:
            cells = (
                _SIGNS[each.verdict],
                each.name,
                amount(each.threshold, each.unit),
                UNKNOWN if each.value is None else amount(each.value, each.unit),
                UNKNOWN if each.bound is None else amount(each.bound, each.unit),
                f"{each.n} ({each.n_eff:.0f})",
                str(each.exceedances),
            )
            yield f"| {' | '.join(cells)} |"
    if verdict.faults:
        yield ""
        yield "| | Fault | In flight | New failed | Cut | TTD | TTR | Delete to last new request |"
        yield "|---|---|---|---|---|---|---|---|"
        for fault in verdict.faults:
            row = (
                _SIGNS[fault.verdict],
                fault.kind,
                "?" if fault.in_flight is None else str(fault.in_flight),
                f"{fault.failed_new} of {fault.new_requests}",
                str(fault.cut),
                _seconds(fault.ttd_s),
                ("≥ " if fault.ttr_censored and fault.ttr_s is not None else "") + _seconds(fault.ttr_s),
                _seconds(fault.last_new_request_s),
            )
            yield f"| {' | '.join(row)} |"


def _seconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f} s"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _command(level: str, title: str, text: str) -> str:
    def escaped(value: str, *, in_property: bool) -> str:
        value = value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return value.replace(":", "%3A").replace(",", "%2C") if in_property else value

    return f"::{level} title={escaped(title, in_property=True)}::{escaped(text, in_property=False)}"
