"""NOTES.txt says how to reach the release and everything that was loosened."""

from typing import Any

import pytest

from llm_replicas.chart.render import notes
from tests.chart.chart_places import CHART, STANDIN

WARNINGS: list[tuple[dict[str, Any], str]] = [
    ({"lifecycle.acceptDroppedRequests": True}, "lifecycle.acceptDroppedRequests is true"),
    ({"engine": "triton", "gpu.mode": "none"}, "gpu.mode is none: replicas run on CPUs."),
    ({"replicas": 1}, "replicas is 1"),
    ({"router.enabled": False}, "router.enabled is false"),
    ({"router.replicas": 1}, "router.replicas is 1"),
    ({"traffic.retries.attempts": 0}, "traffic.retries.attempts is 0"),
    ({"router.responseHeaders": True}, "router.responseHeaders is true"),
    ({"podDisruptionBudget.enabled": False}, "podDisruptionBudget.enabled is false"),
]


def test_nothing_is_warned_of_by_default(helm: Any) -> None:
    assert "WARNING" not in notes(CHART, helm)


@pytest.mark.parametrize(("loosened", "told"), WARNINGS, ids=lambda item: str(item)[:60])
def test_what_was_loosened_is_told(loosened: dict[str, Any], told: str, helm: Any) -> None:
    text = notes(CHART, helm, overrides=loosened)

    assert f"  - {told}" in text


def test_the_stand_in_is_called_one(helm: Any) -> None:
    text = notes(CHART, helm, [STANDIN])

    assert "The image is the stand-in: its answers and its speed are simulated." in text
    assert "tritonserver 2.51.0 lacks security fixes up to 2.71.0" in text


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("ClusterIP", "port-forward service/llm-llm-replicas 8080:8080"),
        ("NodePort", "get service llm-llm-replicas"),
        ("LoadBalancer", "get service llm-llm-replicas --watch"),
    ],
)
def test_the_way_in_depends_on_the_service(kind: str, told: str, helm: Any) -> None:
    assert told in notes(CHART, helm, overrides={"router.service.type": kind})


def test_the_claim_that_must_exist_is_named(helm: Any) -> None:
    assert "get persistentvolumeclaim llm-model" in notes(CHART, helm)
    assert "persistentvolumeclaim" not in notes(CHART, helm, [STANDIN])


def test_without_a_router_the_pods_themselves_are_named(helm: Any) -> None:
    text = notes(CHART, helm, overrides={"router.enabled": False})

    assert "-replicas." in text
    assert "(8000 HTTP, 8001 gRPC)" in text
