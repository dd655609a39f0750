"""Everything that can be said about values without a cluster: refusals, rules and unkeepable promises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llm_replicas.chart.objects import Objects
from llm_replicas.chart.render import render
from llm_replicas.chart.rules import ALL_RULES, Finding
from llm_replicas.chart.timing import unkeepable
from llm_replicas.errors import UsageError


def check_values(chart: Path, values: Sequence[Path], helm: Path) -> list[Finding]:
    """All findings for the objects that these values make; empty when all is well.

    A missing file or Helm binary raises UsageError; values that the chart refuses are findings.
    """
    for file in values:
        if not file.is_file():
            raise UsageError(f"values file {file} is not there")
    try:
        objects = render(chart, helm, values)
    except UsageError as refused:
        return [Finding("refused", "values", str(refused))]
    return check_objects(objects)


def check_objects(objects: Objects) -> list[Finding]:
    """All findings for rendered objects."""
    found = [finding for rule in ALL_RULES for finding in rule(objects)]
    found += [Finding("promise-keepable", broken.path, broken.message) for broken in unkeepable(objects)]
    return found
