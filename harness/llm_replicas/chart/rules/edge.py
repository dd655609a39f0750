"""What the router lets through, tells and repeats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_replicas.chart import timing
from llm_replicas.chart.objects import Object, Objects
from llm_replicas.chart.rules.base import Finding, Rule

LOGGED_NEVER = ("AUTHORIZATION", "COOKIE", "API-KEY", "%REQ(:PATH)%", "QUERY", "BODY")
PEEK_PORTS = {"observe"}


def only_inference_is_routed(objects: Objects) -> Iterator[Finding]:
    """A route to the replicas names one method and an exact shape; everything else ends in 404."""
    for name, manager in _managers(objects):
        routes = manager["route_config"]["virtual_hosts"][0]["routes"]
        for route in routes:
            if "route" not in route:
                continue
            match = route["match"]
            exact = "path" in match or "safe_regex" in match
            methods = [h for h in match.get("headers", []) if h["name"] == ":method"]
            if not exact or not methods:
                yield Finding(
                    "only-inference-is-routed", f"listener {name}", f"route {match} is wider than one shape"
                )
        if routes[-1].get("direct_response", {}).get("status") != 404:
            yield Finding(
                "only-inference-is-routed", f"listener {name}", "what no route names is not answered 404"
            )


def paths_normalised(objects: Objects) -> Iterator[Finding]:
    """A path is compared only after dots, doubled and escaped slashes are settled."""
    for name, manager in _managers(objects):
        if name in PEEK_PORTS:
            continue
        if not (manager.get("normalize_path") and manager.get("merge_slashes")):
            yield Finding(
                "paths-normalised", f"listener {name}", "normalize_path and merge_slashes are not both on"
            )
        if manager.get("path_with_escaped_slashes_action") != "REJECT_REQUEST":
            yield Finding("paths-normalised", f"listener {name}", "escaped slashes are not rejected")


def admin_stays_inside(objects: Objects) -> Iterator[Finding]:
    """Envoy's admin port listens on the pod's loopback alone."""
    envoy = objects.envoy()
    if envoy is None:
        return
    address = envoy["admin"]["address"]["socket_address"]["address"]
    if address not in {"127.0.0.1", "::1"}:
        yield Finding("admin-stays-inside", "router", f"the admin port listens on {address}")


def access_log_has_no_secrets(objects: Objects) -> Iterator[Finding]:
    """The access log holds no credential, body or query string."""
    for name, manager in _managers(objects):
        for log in manager.get("access_log", []):
            fields: dict[str, str] = log["typed_config"]["log_format"]["json_format"]
            for key, text in fields.items():
                if any(word in str(text).upper() for word in LOGGED_NEVER):
                    yield Finding("access-log-has-no-secrets", f"listener {name}", f"field {key} logs {text}")


def retries_bounded(objects: Objects) -> Iterator[Finding]:
    """A request is repeated only before its first byte, elsewhere, within a budget; no route ends at 15 s."""
    envoy = objects.envoy()
    if envoy is None:
        return
    for name, manager in _managers(objects):
        if name in PEEK_PORTS:
            continue
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            action = route.get("route")
            if action is None:
                continue
            if action.get("timeout") != "0s":
                yield Finding("retries-bounded", f"listener {name}", "a route timeout would cut long answers")
            retry = action.get("retry_policy")
            if retry and not retry.get("retry_host_predicate"):
                yield Finding(
                    "retries-bounded", f"listener {name}", "a retry may go to the host that just failed"
                )
            if retry and not set(retry["retry_on"].split(",")) <= timing.SAFE_RETRIES:
                yield Finding(
                    "retries-bounded", f"listener {name}", f"retry_on {retry['retry_on']} repeats answers"
                )
    for cluster in timing.replica_clusters(envoy):
        if not cluster["circuit_breakers"]["thresholds"][0].get("retry_budget"):
            yield Finding("retries-bounded", f"router cluster {cluster['name']}", "retries have no budget")


def small_fleets_eject(objects: Objects) -> Iterator[Finding]:
    """One of N replicas can be ejected however small N is, the last never; panic routes to no dead one."""
    envoy, workload = objects.envoy(), objects.workload("replica")
    if envoy is None or workload is None:
        return
    replicas = workload["spec"].get("replicas", 1)
    for cluster in timing.replica_clusters(envoy):
        where = f"router cluster {cluster['name']}"
        limit = cluster["outlier_detection"]["max_ejection_percent"]
        if replicas > 1 and 100 / replicas > limit:
            yield Finding("small-fleets-eject", where, f"{limit} % of {replicas} replicas is less than one")
        if limit >= 100:
            yield Finding("small-fleets-eject", where, "every replica may be ejected for a model's own 5xx")
        if cluster["common_lb_config"]["healthy_panic_threshold"]["value"] != 0:
            yield Finding("small-fleets-eject", where, "in panic, requests go to replicas known to be dead")


def _managers(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    envoy: Object | None = objects.envoy()
    for listener in envoy["static_resources"]["listeners"] if envoy else []:
        for chain in listener["filter_chains"]:
            for found in chain["filters"]:
                yield listener["name"], found["typed_config"]


EDGE_RULES: tuple[Rule, ...] = (
    only_inference_is_routed,
    paths_normalised,
    admin_stays_inside,
    access_log_has_no_secrets,
    retries_bounded,
    small_fleets_eject,
)
