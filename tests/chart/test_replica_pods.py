"""What a replica is told and given, computed from the operator's decisions."""

from typing import Any

import pytest

from llm_replicas.chart.objects import container, flags, pod_spec
from tests.chart.chart_places import Renderer


def _pod(rendered: Renderer, overrides: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    workload = rendered(overrides, **more).workload("replica")
    assert workload is not None
    return pod_spec(workload)


def _server(rendered: Renderer, overrides: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return container(rendered(overrides, **more).workload("replica"), "triton")


@pytest.mark.parametrize(
    ("budget", "period", "threshold"), [(1800, 5, 360), (60, 1, 60), (61, 5, 13), (1, 1, 1)]
)
def test_startup_probe_lasts_the_budget(budget: int, period: int, threshold: int, rendered: Renderer) -> None:
    server = _server(
        rendered, {"lifecycle.startupBudgetSeconds": budget, "lifecycle.startupPeriodSeconds": period}
    )

    assert server["startupProbe"]["periodSeconds"] == period
    assert server["startupProbe"]["failureThreshold"] == threshold


def test_the_three_probes_ask_different_things(rendered: Renderer) -> None:
    server = _server(rendered)

    assert server["readinessProbe"] == {
        "httpGet": {"path": "/v2/health/ready", "port": "http"},
        "periodSeconds": 2,
        "failureThreshold": 2,
        "timeoutSeconds": 2,
    }
    assert server["livenessProbe"] == {
        "httpGet": {"path": "/v2/health/live", "port": "http"},
        "periodSeconds": 10,
        "failureThreshold": 6,
        "timeoutSeconds": 5,
    }


def test_termination_is_withdrawal_then_drain_then_margin(rendered: Renderer) -> None:
    overrides = {"lifecycle.endpointWithdrawalSeconds": 40, "lifecycle.drainSeconds": 100}

    server = _server(rendered, overrides)

    assert server["lifecycle"] == {"preStop": {"sleep": {"seconds": 40}}}
    assert flags(server)["exit-timeout-secs"] == "100"
    assert _pod(rendered, overrides)["terminationGracePeriodSeconds"] == 150


def test_no_sleep_is_written_for_zero(rendered: Renderer) -> None:
    server = _server(
        rendered, {"lifecycle.endpointWithdrawalSeconds": 0, "lifecycle.acceptDroppedRequests": True}
    )

    assert "lifecycle" not in server


def test_a_rollout_waits_for_discovery_and_for_loading(rendered: Renderer) -> None:
    spec = rendered({"lifecycle.startupBudgetSeconds": 900}).workload("replica")["spec"]

    assert spec["minReadySeconds"] == 32
    assert spec["progressDeadlineSeconds"] == 900 + 32 + 300


@pytest.mark.parametrize(("mode", "surge", "unavailable"), [("surge", 1, 0), ("inPlace", 0, 1)])
def test_rollout_mode(mode: str, surge: int, unavailable: int, rendered: Renderer) -> None:
    strategy = rendered({"rollout.mode": mode}).workload("replica")["spec"]["strategy"]

    assert strategy["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": unavailable}


@pytest.mark.parametrize(
    ("version", "expected"), [("2.67.0", None), ("2.68.0", "false"), ("2.71.0", "false"), ("2.90.0", "false")]
)
def test_a_flag_is_written_only_for_versions_that_know_it(
    version: str, expected: str | None, rendered: Renderer
) -> None:
    server = _server(rendered, {"engine": "triton", "image.tag": "1", "image.serverVersion": version})

    assert flags(server).get("allow-client-shm") == expected


def test_nothing_can_be_loaded_or_reached_beside_inference(rendered: Renderer) -> None:
    given = flags(_server(rendered))

    assert given["model-control-mode"] == "none"
    assert given["allow-sagemaker"] == given["allow-vertex-ai"] == "false"
    assert given["strict-readiness"] == given["exit-on-error"] == "true"


def test_own_flags_are_added(rendered: Renderer) -> None:
    assert flags(_server(rendered, {"serverFlags": {"log-verbose": "1"}}))["log-verbose"] == "1"


def test_gpus_are_limits_of_their_resource(rendered: Renderer) -> None:
    assert _server(rendered, {"gpu.count": 2})["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert "nvidia.com/gpu" not in _server(rendered, standin=True)["resources"]["limits"]


def test_the_model_is_mounted_read_only_from_its_claim(rendered: Renderer) -> None:
    overrides = {"model.source": "pvc://weights/llama/70b", "model.path": "/repository"}

    mount = next(m for m in _server(rendered, overrides)["volumeMounts"] if m["name"] == "model")
    volume = next(v for v in _pod(rendered, overrides)["volumes"] if v["name"] == "model")

    assert mount == {"name": "model", "mountPath": "/repository", "readOnly": True, "subPath": "llama/70b"}
    assert volume["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}


def test_a_baked_in_model_needs_no_volume(rendered: Renderer) -> None:
    assert {v["name"] for v in _pod(rendered, {"model.source": "image://"})["volumes"]} == {"shm", "scratch"}


def test_the_digest_wins_over_the_tag(rendered: Renderer) -> None:
    digest = "sha256:" + "a" * 64

    assert _server(rendered, {"image.digest": digest})["image"] == f"nvcr.io/nvidia/tritonserver@{digest}"


def test_lost_nodes_release_their_pods_early(rendered: Renderer) -> None:
    tolerations = _pod(rendered, {"lifecycle.nodeLossTolerationSeconds": 12})["tolerations"]

    assert {(t["key"], t["tolerationSeconds"]) for t in tolerations} == {
        ("node.kubernetes.io/not-ready", 12),
        ("node.kubernetes.io/unreachable", 12),
    }


# The stand-in is a values file, not a flavour of templates: only these fields of its pod may differ.
DIFFERENCES = {
    "containers.0.args",
    "containers.0.command",
    "containers.0.image",
    "containers.0.lifecycle.preStop.sleep.seconds",
    "containers.0.resources",
    "containers.0.startupProbe.failureThreshold",
    "containers.0.startupProbe.periodSeconds",
    "containers.0.volumeMounts",
    "terminationGracePeriodSeconds",
    "tolerations",
    "volumes",
}


def test_the_stand_in_pod_differs_only_where_listed(rendered: Renderer) -> None:
    differing = set(_differences(_pod(rendered), _pod(rendered, standin=True)))

    unlisted = {
        path for path in differing if not any(path == d or path.startswith(f"{d}.") for d in DIFFERENCES)
    }
    unused = {d for d in DIFFERENCES if not any(path == d or path.startswith(f"{d}.") for path in differing)}

    assert unlisted == set()
    assert unused == set()


def _differences(left: Any, right: Any, path: str = "") -> list[str]:
    if isinstance(left, dict) and isinstance(right, dict):
        keys = left.keys() | right.keys()
        return [
            d for key in keys for d in _differences(left.get(key), right.get(key), f"{path}.{key}".strip("."))
        ]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            d
            for i, pair in enumerate(zip(left, right, strict=True))
            for d in _differences(*pair, f"{path}.{i}")
        ]
    return [] if left == right else [path]
