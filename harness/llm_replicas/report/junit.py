"""`junit.xml`: one test case for each objective, fault and condition. Only a pass leaves it green."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from llm_replicas.slo.verdict import Verdict, describe_fault, describe_objective

# Control characters have no place in XML, and an error message from a broken server may hold some.
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Case(NamedTuple):
    group: str
    name: str
    verdict: str
    text: str
    detail: str


def write_junit(path: Path, verdict: Verdict) -> None:
    """Write the verdict for a CI that reads JUnit."""
    path.write_text(to_junit(verdict), encoding="utf-8")


def to_junit(verdict: Verdict) -> str:
    """The verdict as JUnit text: a fail is a failure, inconclusive and invalid are errors."""
    cases = list(_cases(verdict))
    if verdict.verdict != "pass" and all(case.verdict == "pass" for case in cases):
        # Whatever the reason, a run that did not pass must not look green.
        cases.append(_Case("run", "verdict", verdict.verdict, f"the run is {verdict.verdict}", ""))
    failures = sum(case.verdict == "fail" for case in cases)
    errors = sum(case.verdict in {"inconclusive", "invalid"} for case in cases)
    totals = {"tests": str(len(cases)), "failures": str(failures), "errors": str(errors)}
    root = ET.Element("testsuites", {"name": "llm-replicas", **totals})
    suite = ET.SubElement(root, "testsuite", {"name": str(verdict.provenance.get("run", "run")), **totals})
    started = verdict.provenance.get("started")
    if isinstance(started, str):
        suite.set("timestamp", started.removesuffix("+00:00"))
    properties = ET.SubElement(suite, "properties")
    for name, value in (("verdict", verdict.verdict), ("slo_digest", verdict.slo_digest)):
        ET.SubElement(properties, "property", {"name": name, "value": value})
    for case in cases:
        element = ET.SubElement(
            suite, "testcase", {"classname": f"llm-replicas.{case.group}", "name": case.name, "time": "0"}
        )
        if case.verdict != "pass":
            tag = "failure" if case.verdict == "fail" else "error"
            child = ET.SubElement(element, tag, {"type": case.verdict, "message": _clean(case.text)})
            child.text = _clean(case.detail)
        else:
            ET.SubElement(element, "system-out").text = _clean(case.detail or case.text)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _cases(verdict: Verdict) -> Iterable[_Case]:
    for objective in verdict.objectives:
        yield _Case("objective", objective.name, objective.verdict, objective.reason, describe_objective(objective))
    for fault in verdict.faults:
        text = "; ".join(fault.reasons) or "as promised"
        yield _Case("fault", f"{fault.kind} in {fault.phase}", fault.verdict, text, describe_fault(fault))
    for number, condition in enumerate(verdict.conditions, start=1):
        yield _Case("condition", f"{number} {condition.name}", condition.verdict, condition.text, condition.text)
    generator = verdict.generator
    yield _Case(
        "generator",
        "self-check",
        "pass" if generator.valid else "invalid",
        "; ".join(generator.reasons) or f"{generator.recorded} records, none missing",
        f"late p99 {generator.late_p99_ms} ms",
    )


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)
