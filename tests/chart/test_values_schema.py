"""values.yaml, its schema, its README table and the templates agree with each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_replicas.chart import values_docs
from llm_replicas.chart.objects import Objects
from llm_replicas.chart.values_docs import Value
from llm_replicas.errors import UsageError
from llm_replicas.slo.model import slo_json_schema
from tests.chart.chart_places import CHART, Renderer

VALUES = values_docs.read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
GROUPS = {value.path[:-1] for value in VALUES}
LEAVES = [value for value in VALUES if value.path not in GROUPS]

# Values that change the render only beside another one.
COMPANIONS: dict[str, dict[str, Any]] = {
    "gpu.mode": {"engine": "triton"},
    "router.service.httpNodePort": {"router.service.type": "NodePort"},
    "router.service.grpcNodePort": {"router.service.type": "NodePort"},
    "serviceAccount.name": {"serviceAccount.create": False},
    "image.tag": {"image.serverVersion": "2.71.0"},
}
# What to try where "a little different" cannot be guessed from the default.
OTHER: dict[str, Any] = {
    "image.digest": "sha256:" + "1" * 64,
    "image.serverVersion": "2.72.0",
    "image.pullSecrets": ["registry"],
    "image.command": ["/start"],
    "model.names": ["other"],
    "model.source": "image://",
    "model.path": "/other",
    "volumes.sharedMemorySize": "2Gi",
    "volumes.scratchSize": "2Gi",
    "serverFlags": {"log-verbose": "1"},
    "scheduling.tolerations": [{"key": "gpu", "operator": "Exists"}],
    "router.image.digest": "sha256:" + "2" * 64,
    "router.image.tag": "v1.41.0",
    "slo.latency.ttft": {"quantile": 0.9, "seconds": 3},
    "slo.latency.largestGap": {"quantile": 0.9, "seconds": 3},
    "slo.failover.podDelete": {"failedNew": 1, "cut": 1},
    "slo.failover.podKill": {"failedNew": 1, "cut": 1},
    "slo.failover.replicaRollout": {"failedNew": 1, "cut": 1},
    "slo.failover.routerRollout": {"failedNew": 1, "cut": 1},
    "slo.confidence": 0.9,
    "slo.errorRatio": 0.5,
    "lifecycle.drainSeconds": 200,
    "router.service.httpPort": 80,
}


def test_generated_files_are_the_committed_ones() -> None:
    stale = values_docs.stale(CHART)

    assert stale == [], "run: python -m llm_replicas.chart.values_docs --write"


def test_every_value_says_what_it_decides() -> None:
    assert values_docs.undocumented(VALUES) == []


@pytest.mark.parametrize("value", LEAVES, ids=lambda value: value.dotted)
def test_every_value_changes_the_render(value: Value, rendered: Renderer) -> None:
    beside = COMPANIONS.get(value.dotted, {})

    changed = rendered({**beside, value.dotted: _other(value)})

    assert _plain(changed) != _plain(rendered(beside))


def _other(value: Value) -> Any:
    if value.dotted in OTHER:
        return OTHER[value.dotted]
    if "enum" in value.hints:
        words = [word.strip() for word in value.hints["enum"].split("|")]
        return next(word for word in words if word != value.default)
    if isinstance(value.default, bool):
        return not value.default
    if isinstance(value.default, int | float):
        return value.default + 1
    if isinstance(value.default, dict):
        return {**value.default, "x": "1"}
    return f"{value.default}x"


def _plain(objects: Objects) -> str:
    return json.dumps(list(objects), sort_keys=True)


@pytest.mark.parametrize(
    ("path", "given", "named"),
    [
        ("router.replcas", 3, "router"),
        ("lifecycle.drainSecond", 3, "lifecycle"),
        ("slo.latency.ttft.second", 1, "slo/latency/ttft"),
        ("traffic.retries.atempts", 1, "traffic/retries"),
        ("replica", 3, "replica"),
    ],
)
def test_a_misspelt_value_is_refused_with_its_path(
    path: str, given: Any, named: str, rendered: Renderer
) -> None:
    with pytest.raises(UsageError) as refused:
        rendered({path: given})

    assert named in str(refused.value)
    assert path.rpartition(".")[2] in str(refused.value)


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("lifecycle.drainSeconds", "5m"),
        ("lifecycle.drainSeconds", -1),
        ("traffic.strategy", "clientIpHash"),
        ("replicas", 0),
        ("image.digest", "sha256:short"),
        ("volumes.scratchSize", "16 GB"),
        ("traffic.retries.attempts", 3),
        ("slo.latency.ttft.quantile", 99),
        ("slo.failover.podKill.cut", "some"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(path: str, given: Any, rendered: Renderer) -> None:
    with pytest.raises(UsageError) as refused:
        rendered({path: given})

    assert path.replace(".", "/") in str(refused.value)


def test_the_schema_is_closed_everywhere_but_in_declared_maps() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    declared = {value.path for value in VALUES if "map" in value.hints}

    def open_objects(node: dict[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
        found = []
        if node.get("type") == "object" and node.get("additionalProperties") is not False:
            found.append(path)
        for key, child in node.get("properties", {}).items():
            found += open_objects(child, (*path, key))
        return found

    assert set(open_objects(schema, ())) - declared == {("global",)}


def test_the_slo_part_is_the_models_own() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    assert schema["properties"]["slo"]["properties"] == slo_json_schema()["properties"]


def test_every_scenario_file_is_valid(rendered: Renderer, helm: Path) -> None:
    from llm_replicas.chart.render import render

    scenarios = sorted((CHART / "ci").glob("*-values.yaml"))
    assert len(scenarios) >= 6

    for scenario in scenarios:
        assert len(render(CHART, helm, [scenario])) > 0
