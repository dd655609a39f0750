"""Each rule is silent on the default render and finds its own fault when that is put in."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_replicas.chart.check import check_objects
from llm_replicas.chart.objects import Objects, container, load_yaml, pod_spec
from llm_replicas.chart.rules import ALL_RULES

GOLDEN = Path(__file__).resolve().parents[2] / "chart" / "golden" / "defaults.yaml"
DEFAULTS = list(yaml.safe_load_all(GOLDEN.read_text(encoding="utf-8")))

Break = Callable[[Objects], None]


def good() -> Objects:
    return Objects(copy.deepcopy(DEFAULTS))


def test_the_default_render_has_no_finding() -> None:
    assert check_objects(good()) == []


def _pod(objects: Objects) -> dict[str, Any]:
    return pod_spec(objects.workload("replica"))


def _server(objects: Objects) -> dict[str, Any]:
    return container(objects.workload("replica"), "triton")


def _envoy(change: Callable[[dict[str, Any]], None]) -> Break:
    """A break inside the router's configuration."""

    def apply(objects: Objects) -> None:
        for item in objects.of("ConfigMap"):
            if "envoy.yaml" in item["data"]:
                config = load_yaml(item["data"]["envoy.yaml"])
                change(config)
                item["data"]["envoy.yaml"] = yaml.safe_dump(config)

    return apply


def _manager(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0][
        "typed_config"
    ]
    return found


def _route(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _manager(config)["route_config"]["virtual_hosts"][0]["routes"][0]
    return found


def _cluster(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["static_resources"]["clusters"][0]
    return found


def _add_scaler(objects: Objects) -> None:
    target = {"kind": "Deployment", "name": objects.workload("replica")["metadata"]["name"]}
    scaler = {
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "x"},
        "spec": {"scaleTargetRef": target},
    }
    objects.items.append(scaler)  # type: ignore[attr-defined]


def _add_volume(objects: Objects) -> None:
    _pod(objects)["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


def _idle_long(config: dict[str, Any]) -> None:
    (options,) = _cluster(config)["typed_extension_protocol_options"].values()
    options["common_http_protocol_options"]["idle_timeout"] = "300s"


def _log(field: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        _manager(config)["access_log"][0]["typed_config"]["log_format"]["json_format"]["path"] = field

    return change


def _set(pick: Callable[[Objects], dict[str, Any]], **fields: Any) -> Break:
    return lambda objects: pick(objects).update(fields)


def _security(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = _server(objects)["securityContext"]
    return found


def _pod_security(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = _pod(objects)["securityContext"]
    return found


def _deployment(objects: Objects) -> dict[str, Any]:
    found: dict[str, Any] = objects.workload("replica")["spec"]
    return found


RED: list[tuple[str, str, Break]] = [
    ("no-floating-image", "latest", _set(_server, image="registry:5000/triton:latest")),
    ("no-floating-image", "no tag", _set(_server, image="registry:5000/triton")),
    ("restricted-pod", "host network", _set(_pod, hostNetwork=True)),
    ("restricted-pod", "host processes", _set(_pod, hostPID=True)),
    ("restricted-pod", "host path", _add_volume),
    ("restricted-pod", "no seccomp", lambda o: _pod_security(o).pop("seccompProfile")),
    ("restricted-containers", "root allowed", _set(_pod_security, runAsNonRoot=False)),
    ("restricted-containers", "root", _set(_pod_security, runAsUser=0)),
    ("restricted-containers", "privileged", _set(_security, privileged=True)),
    ("restricted-containers", "escalation", lambda o: _security(o).pop("allowPrivilegeEscalation")),
    ("restricted-containers", "capabilities kept", _set(_security, capabilities={})),
    (
        "restricted-containers",
        "capability added",
        _set(_security, capabilities={"drop": ["ALL"], "add": ["IPC_LOCK"]}),
    ),
    ("restricted-containers", "host port", lambda o: _server(o)["ports"][0].update(hostPort=80)),
    ("read-only-root", "writable root", _set(_security, readOnlyRootFilesystem=False)),
    ("no-api-token", "token", lambda o: _pod(o).pop("automountServiceAccountToken")),
    ("no-api-token", "service links", _set(_pod, enableServiceLinks=True)),
    ("no-literal-secret", "key", lambda o: _server(o)["env"].append({"name": "HF_TOKEN", "value": "x"})),
    ("probes-distinct", "missing", lambda o: _server(o).pop("startupProbe")),
    ("probes-distinct", "same", lambda o: _server(o).update(livenessProbe=_server(o)["readinessProbe"])),
    ("grace-covers-exit", "short grace", _set(_pod, terminationGracePeriodSeconds=344)),
    ("progress-covers-startup", "short deadline", _set(_deployment, progressDeadlineSeconds=1800)),
    ("idle-connections-leave-first", "long idle", _envoy(_idle_long)),
    ("writable-paths", "no shm", lambda o: _server(o).update(volumeMounts=_server(o)["volumeMounts"][1:])),
    ("writable-paths", "shm on disk", lambda o: _pod(o)["volumes"][0].update(emptyDir={"sizeLimit": "1Gi"})),
    (
        "selectors-stable",
        "version",
        lambda o: _deployment(o)["selector"]["matchLabels"].update({"helm.sh/chart": "1"}),
    ),
    (
        "selectors-stable",
        "mismatch",
        lambda o: _deployment(o)["selector"]["matchLabels"].update({"app.kubernetes.io/name": "other"}),
    ),
    (
        "services-have-pods",
        "selects none",
        lambda o: o.one("Service", "-replicas-replicas")["spec"].update(selector={"app": "x"}),
    ),
    (
        "services-have-pods",
        "port nobody offers",
        lambda o: o.one("Service", "-replicas-replicas")["spec"]["ports"][0].update(targetPort="web"),
    ),
    (
        "budget-never-blocks",
        "zero",
        lambda o: o.one("PodDisruptionBudget", "-replica")["spec"].update(maxUnavailable=0),
    ),
    ("budget-never-blocks", "single pod", _set(_deployment, replicas=1)),
    (
        "budget-never-blocks",
        "unready pods count",
        lambda o: o.one("PodDisruptionBudget", "-replica")["spec"].pop("unhealthyPodEvictionPolicy"),
    ),
    (
        "rollout-can-move",
        "both zero",
        lambda o: _deployment(o)["strategy"].update(rollingUpdate={"maxSurge": 0, "maxUnavailable": 0}),
    ),
    ("scaler-owns-replicas", "both set it", _add_scaler),
    ("names-fit", "long", lambda o: o.one("Service", "-replicas-replicas")["metadata"].update(name="a" * 64)),
    (
        "names-fit",
        "twice",
        lambda o: o.one("Service", "-replicas-replicas")["metadata"].update(name="llm-llm-replicas"),
    ),
    ("only-inference-is-routed", "prefix", _envoy(lambda c: _route(c).update(match={"prefix": "/v2"}))),
    ("only-inference-is-routed", "any method", _envoy(lambda c: _route(c)["match"].pop("headers"))),
    (
        "only-inference-is-routed",
        "open end",
        _envoy(lambda c: _manager(c)["route_config"]["virtual_hosts"][0]["routes"].pop()),
    ),
    ("paths-normalised", "dots", _envoy(lambda c: _manager(c).pop("normalize_path"))),
    ("paths-normalised", "escapes", _envoy(lambda c: _manager(c).pop("path_with_escaped_slashes_action"))),
    (
        "admin-stays-inside",
        "everywhere",
        _envoy(lambda c: c["admin"]["address"]["socket_address"].update(address="0.0.0.0")),
    ),
    ("access-log-has-no-secrets", "key", _envoy(_log("%REQ(AUTHORIZATION)%"))),
    ("access-log-has-no-secrets", "query", _envoy(_log("%REQ(:PATH)%"))),
    ("retries-bounded", "15 s", _envoy(lambda c: _route(c)["route"].pop("timeout"))),
    (
        "retries-bounded",
        "same host",
        _envoy(lambda c: _route(c)["route"]["retry_policy"].pop("retry_host_predicate")),
    ),
    (
        "retries-bounded",
        "answers",
        _envoy(lambda c: _route(c)["route"]["retry_policy"].update(retry_on="5xx")),
    ),
    (
        "retries-bounded",
        "no budget",
        _envoy(lambda c: _cluster(c)["circuit_breakers"]["thresholds"][0].pop("retry_budget")),
    ),
    (
        "small-fleets-eject",
        "Envoy's default",
        _envoy(lambda c: _cluster(c)["outlier_detection"].update(max_ejection_percent=10)),
    ),
    (
        "small-fleets-eject",
        "all of them",
        _envoy(lambda c: _cluster(c)["outlier_detection"].update(max_ejection_percent=100)),
    ),
    (
        "small-fleets-eject",
        "panic",
        _envoy(lambda c: _cluster(c)["common_lb_config"].update(healthy_panic_threshold={"value": 50})),
    ),
]


@pytest.mark.parametrize(
    ("rule", "fault", "put_in"), RED, ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_rule_finds_its_fault(rule: str, fault: str, put_in: Break) -> None:
    objects = good()
    put_in(objects)

    found = {finding.rule for each in ALL_RULES for finding in each(objects)}

    assert rule in found, fault


def test_every_rule_has_a_red_twin() -> None:
    rules = {each.__name__.replace("_", "-") for each in ALL_RULES}

    assert {rule for rule, _, _ in RED} == rules
