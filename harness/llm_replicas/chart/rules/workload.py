"""Selectors, budgets and ownership: what goes wrong only on the second day."""

from __future__ import annotations

from collections.abc import Iterator

from llm_replicas.chart.objects import Object, Objects, name_of, pod_spec, workloads
from llm_replicas.chart.rules.base import Finding, Rule

STABLE_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}


def selectors_stable(objects: Objects) -> Iterator[Finding]:
    """A selector holds only labels that no upgrade changes, and its own pods match it."""
    for workload in workloads(objects):
        selector = workload["spec"].get("selector", {}).get("matchLabels", {})
        for label in set(selector) - STABLE_LABELS:
            yield Finding("selectors-stable", name_of(workload), f"label {label} in the selector may change")
        if not _matches(selector, workload):
            yield Finding("selectors-stable", name_of(workload), "the selector does not match its own pods")


def services_have_pods(objects: Objects) -> Iterator[Finding]:
    """Each Service and each PodDisruptionBudget selects the pods of exactly one workload."""
    for item in (*objects.of("Service"), *objects.of("PodDisruptionBudget")):
        selector = item["spec"]["selector"]
        labels = selector if item["kind"] == "Service" else selector["matchLabels"]
        found = [workload for workload in workloads(objects) if _matches(labels, workload)]
        if len(found) != 1:
            yield Finding(
                "services-have-pods", name_of(item), f"selects {len(found)} workloads instead of one"
            )
            continue
        if item["kind"] == "Service":
            yield from _ports_exist(item, found[0])


def _ports_exist(service: Object, workload: Object) -> Iterator[Finding]:
    offered = {port["name"] for found in pod_spec(workload)["containers"] for port in found.get("ports", [])}
    for port in service["spec"]["ports"]:
        if port["targetPort"] not in offered:
            yield Finding(
                "services-have-pods",
                name_of(service),
                f"port {port['targetPort']} is offered by no container",
            )


def budget_never_blocks(objects: Objects) -> Iterator[Finding]:
    """A PodDisruptionBudget always lets a node drain proceed."""
    for budget in objects.of("PodDisruptionBudget"):
        selector = budget["spec"]["selector"]["matchLabels"]
        pods = sum(w["spec"].get("replicas", 1) for w in workloads(objects) if _matches(selector, w))
        if (
            "maxUnavailable" not in budget["spec"]
            or budget["spec"]["maxUnavailable"] in {0, "0%"}
            or pods < 2
        ):
            yield Finding(
                "budget-never-blocks", name_of(budget), f"with {pods} pod(s) it may forbid every eviction"
            )
        if budget["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield Finding(
                "budget-never-blocks", name_of(budget), "a pod that never got ready blocks its node's drain"
            )


def rollout_can_move(objects: Objects) -> Iterator[Finding]:
    """A rollout may add a pod or take one, and takes none from a single one."""
    for workload in objects.of("Deployment"):
        rolling = workload["spec"].get("strategy", {}).get("rollingUpdate", {})
        surge, unavailable = rolling.get("maxSurge"), rolling.get("maxUnavailable")
        if surge == 0 and unavailable == 0:
            yield Finding("rollout-can-move", name_of(workload), "maxSurge and maxUnavailable are both 0")


def scaler_owns_replicas(objects: Objects) -> Iterator[Finding]:
    """Where an autoscaler sets the number of pods, the workload does not."""
    for scaler in (*objects.of("HorizontalPodAutoscaler"), *objects.of("ScaledObject")):
        target = scaler["spec"]["scaleTargetRef"]
        for workload in workloads(objects):
            same = target.get("kind", "Deployment") == workload["kind"]
            if same and target["name"] == workload["metadata"]["name"] and "replicas" in workload["spec"]:
                yield Finding(
                    "scaler-owns-replicas", name_of(workload), f"{name_of(scaler)} sets replicas too"
                )


def names_fit(objects: Objects) -> Iterator[Finding]:
    """Names fit into 63 characters and no two objects share one."""
    seen: set[str] = set()
    for item in objects:
        where = name_of(item)
        if len(item["metadata"]["name"]) > 63:
            yield Finding("names-fit", where, "the name is longer than 63 characters")
        if where in seen:
            yield Finding("names-fit", where, "rendered twice")
        seen.add(where)


def _matches(selector: dict[str, str], workload: Object) -> bool:
    labels = workload["spec"]["template"]["metadata"]["labels"]
    return bool(selector) and selector.items() <= labels.items()


WORKLOAD_RULES: tuple[Rule, ...] = (
    selectors_stable,
    services_have_pods,
    budget_never_blocks,
    rollout_can_move,
    scaler_owns_replicas,
    names_fit,
)
