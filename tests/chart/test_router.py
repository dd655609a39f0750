"""What the router lets through, repeats, ejects and logs; and that the real Envoy accepts all of it."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_replicas.chart.objects import container, pod_spec
from llm_replicas.chart.render import render
from llm_replicas.chart.timing import replica_clusters
from tests.chart.chart_places import CHART, SCENARIOS, Renderer

# What an edge must never let through (research on Triton's own paths), beside what it must.
ROUTED = [
    "/v2/models/ensemble/infer",
    "/v2/models/ensemble/generate",
    "/v2/models/ensemble/generate_stream",
    "/v2/models/ensemble/versions/1/generate",
    "/v2/models/tensorrt_llm_bls/generate_stream",
]
NEVER = [
    "/",
    "/v2",
    "/v2/health/ready",
    "/v2/health/live",
    "/v2/models/ensemble",
    "/v2/models/ensemble/ready",
    "/v2/models/ensemble/config",
    "/v2/models/ensemble/stats",
    "/v2/models/ensemble/trace/setting",
    "/v2/models/ensemble/generate/",
    "/v2/models/ensemble/versions/x/generate",
    "/v2/models/ensemble/versions/1/config",
    "/v2/models/tensorrt_llm/generate",
    "/v2/models/ensemblex/generate",
    "/v2/repository/index",
    "/v2/repository/models/ensemble/load",
    "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/region/x/register",
    "/v2/trace/setting",
    "/v2/logging",
    "/metrics",
]


def _manager(config: dict[str, Any], listener: str) -> dict[str, Any]:
    found = next(item for item in config["static_resources"]["listeners"] if item["name"] == listener)
    manager: dict[str, Any] = found["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def _routes(config: dict[str, Any], listener: str) -> list[dict[str, Any]]:
    routes: list[dict[str, Any]] = _manager(config, listener)["route_config"]["virtual_hosts"][0]["routes"]
    return routes


ROUTED_SCENARIOS = [path for path in SCENARIOS if path.name != "own-gateway-values.yaml"]


@pytest.mark.parametrize(
    "scenario", [None, *ROUTED_SCENARIOS], ids=lambda path: path.name if path else "defaults"
)
def test_the_real_envoy_accepts_the_configuration(
    scenario: Path | None, helm: Path, envoy: Path, tmp_path: Path
) -> None:
    config = render(CHART, helm, [scenario] if scenario else []).envoy()
    file = tmp_path / "envoy.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")

    ran = subprocess.run(
        [envoy, "--mode", "validate", "--config-path", file, "--log-level", "warning"],
        capture_output=True,
        text=True,
        env={**os.environ, "POD_NAME": "router-0"},
        check=False,
        timeout=60,
    )

    assert ran.returncode == 0, ran.stderr
    assert "deprecated" not in ran.stderr.lower(), ran.stderr


@pytest.mark.parametrize("path", ROUTED)
def test_inference_is_routed(path: str, rendered: Renderer) -> None:
    assert _admits(_routes(rendered().envoy(), "http")[0], path)


@pytest.mark.parametrize("path", NEVER)
def test_nothing_else_is_routed(path: str, rendered: Renderer) -> None:
    routes = _routes(rendered().envoy(), "http")

    assert not any(_admits(route, path) for route in routes if "route" in route)
    assert routes[-1] == {"name": "denied", "match": {"prefix": "/"}, "direct_response": {"status": 404}}


def _admits(route: dict[str, Any], path: str) -> bool:
    # Envoy's safe_regex must match the whole path.
    return re.fullmatch(route["match"]["safe_regex"]["regex"], path) is not None


def test_a_dot_in_a_model_name_is_only_a_dot(rendered: Renderer) -> None:
    (route, _) = _routes(rendered({"model.names": ["bert.en"]}).envoy(), "http")

    assert _admits(route, "/v2/models/bert.en/infer")
    assert not _admits(route, "/v2/models/bertXen/infer")


def test_only_two_grpc_methods_are_routed(rendered: Renderer) -> None:
    routes = _routes(rendered().envoy(), "grpc")

    assert [route["match"].get("path") for route in routes if "route" in route] == [
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    ]


@pytest.mark.parametrize(("attempts", "expected"), [(0, None), (1, 1), (2, 2)])
def test_retries_follow_their_value(attempts: int, expected: int | None, rendered: Renderer) -> None:
    route = _routes(rendered({"traffic.retries.attempts": attempts}).envoy(), "http")[0]["route"]

    assert route.get("retry_policy", {}).get("num_retries") == expected


@pytest.mark.parametrize(
    ("replicas", "percent"), [(1, 0), (2, 50), (3, 67), (4, 75), (7, 86), (9, 89), (100, 99)]
)
def test_all_but_one_replica_may_be_ejected(replicas: int, percent: int, rendered: Renderer) -> None:
    clusters = replica_clusters(rendered({"replicas": replicas}).envoy())

    for cluster in clusters:
        assert cluster["outlier_detection"]["max_ejection_percent"] == percent
    # Envoy ejects while (ejected + 1) / N stays within the ceiling.
    assert (replicas - 1) / replicas * 100 <= percent < 100


def test_discovery_asks_for_the_replicas_full_name(rendered: Renderer) -> None:
    config = rendered({"fullnameOverride": "chat", "clusterDomain": "corp.example"}, namespace="team").envoy()

    addresses = {
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"][
            "socket_address"
        ]["address"]
        for cluster in replica_clusters(config)
    }

    assert addresses == {"chat-replicas.team.svc.corp.example"}


def test_a_vanished_peer_is_given_up_in_time(rendered: Renderer) -> None:
    (cluster, _) = replica_clusters(rendered({"traffic.deadPeerSeconds": 9}).envoy())
    keepalive = cluster["upstream_connection_options"]["tcp_keepalive"]

    assert keepalive["keepalive_time"] + keepalive["keepalive_probes"] * keepalive["keepalive_interval"] == 9
    assert cluster["upstream_bind_config"]["socket_options"][0]["int_value"] == 9000


def test_response_headers_only_when_asked(rendered: Renderer) -> None:
    def headers(overrides: dict[str, Any]) -> set[str]:
        host = _manager(rendered(overrides).envoy(), "http")["route_config"]["virtual_hosts"][0]
        return {row["header"]["key"] for row in host.get("response_headers_to_add", [])}

    assert headers({}) == set()
    assert headers({"router.responseHeaders": True}) == {"x-llm-attempts", "x-llm-replica", "x-llm-router"}


def test_the_access_log_has_exactly_these_fields(rendered: Renderer) -> None:
    for listener in ("http", "grpc"):
        log = _manager(rendered().envoy(), listener)["access_log"][0]["typed_config"]["log_format"][
            "json_format"
        ]

        assert set(log) == {
            "time",
            "request_id",
            "method",
            "path",
            "status",
            "flags",
            "duration_ms",
            "ttfb_ms",
            "bytes_out",
            "upstream",
            "attempts",
            "hosts_attempted",
            "router",
            "listener",
        }


def test_a_change_of_the_configuration_rolls_the_routers(rendered: Renderer) -> None:
    def checksum(overrides: dict[str, Any]) -> str:
        template = rendered(overrides).workload("router")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum({}) == checksum({"replicas": 3})
    assert checksum({}) != checksum({"traffic.strategy": "roundRobin"})


def test_a_router_has_time_to_drain(rendered: Renderer) -> None:
    workload = rendered({"router.endpointWithdrawalSeconds": 7, "router.drainSeconds": 400}).workload(
        "router"
    )

    assert container(workload, "envoy")["lifecycle"]["preStop"]["exec"]["command"][-2:] == ["7", "400"]
    assert pod_spec(workload)["terminationGracePeriodSeconds"] == 417


def test_without_a_router_nothing_of_it_is_left(rendered: Renderer) -> None:
    objects = rendered({"router.enabled": False})

    assert [item["metadata"]["name"] for item in objects if item["metadata"]["name"].endswith("router")] == []
    assert [item["metadata"]["name"] for item in objects.of("Service")] == ["llm-llm-replicas-replicas"]


@pytest.mark.parametrize(
    ("replicas", "routers", "budgets"), [(3, 2, 2), (1, 2, 1), (2, 1, 1), (1, 1, 0)], ids=str
)
def test_budgets_only_from_two_pods_on(replicas: int, routers: int, budgets: int, rendered: Renderer) -> None:
    objects = rendered({"replicas": replicas, "router.replicas": routers})

    assert len(objects.of("PodDisruptionBudget")) == budgets
