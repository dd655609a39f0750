"""Each scenario file renders objects in which no rule finds anything, and which keep their own promises."""

from pathlib import Path

import pytest

from llm_replicas.chart.check import check_objects, check_values
from llm_replicas.chart.render import render
from tests.chart.chart_places import CHART, ROOT, SCENARIOS, STANDIN, Renderer


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
def test_a_scenario_has_no_finding(scenario: Path, helm: Path) -> None:
    assert check_values(CHART, [scenario], helm) == []


def test_the_defaults_have_no_finding(rendered: Renderer) -> None:
    assert check_objects(rendered()) == []


def test_refused_values_are_a_finding(tmp_path: Path, helm: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("gpu: {mode: none}\n", encoding="utf-8")

    (finding,) = check_values(CHART, [values], helm)

    assert finding.rule == "refused"
    assert "gpu.mode: got none" in finding.message


@pytest.mark.parametrize(
    ("twin", "paths"),
    [
        (
            "no-drain",
            {"podDelete.failedNew", "podDelete.cut", "replicaRollout.failedNew", "replicaRollout.cut"},
        ),
        (
            "no-retry",
            {
                *("podDelete.failedNew", "podDelete.cut", "podKill.failedNew"),
                *("replicaRollout.failedNew", "replicaRollout.cut"),
            },
        ),
        ("slow", set()),
    ],
)
def test_a_red_twin_renders_and_cannot_keep_its_promises(twin: str, paths: set[str], helm: Path) -> None:
    findings = check_values(CHART, [STANDIN, ROOT / "tests" / "cluster" / "red" / f"{twin}.yaml"], helm)

    assert {finding.where for finding in findings} == {f"slo.failover.{path}" for path in paths}
    assert {finding.rule for finding in findings} <= {"promise-keepable"}


def test_helm_3_and_4_render_the_same_objects(helm: Path, helm3: Path) -> None:
    for values in ([], [STANDIN]):
        assert list(render(CHART, helm3, values)) == list(render(CHART, helm, values))
