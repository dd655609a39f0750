"""Probes with meanings of their own, and terminations in which every step has the time it needs."""

from __future__ import annotations

from collections.abc import Iterator

from llm_replicas.chart import timing
from llm_replicas.chart.objects import Objects, container, containers, name_of, pod_spec, workloads
from llm_replicas.chart.rules.base import Finding, Rule

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def probes_distinct(objects: Objects) -> Iterator[Finding]:
    """Each serving container is asked three things, and liveness never asks what readiness asks."""
    for workload in workloads(objects):
        for found in containers(workload):
            if not found.get("ports"):
                continue
            where = f"{name_of(workload)} {found['name']}"
            for probe in PROBES:
                if probe not in found:
                    yield Finding("probes-distinct", where, f"{probe} is missing")
            ready, live = (_asked(found.get(probe, {})) for probe in PROBES[1:])
            if ready is not None and ready == live:
                yield Finding(
                    "probes-distinct",
                    where,
                    f"liveness asks {live}, as readiness does: a busy server would be restarted",
                )


def _asked(probe: dict[str, object]) -> str | None:
    for action in ("httpGet", "tcpSocket", "exec", "grpc"):
        if action in probe:
            return f"{action} {probe[action]}"
    return None


def grace_covers_exit(objects: Objects) -> Iterator[Finding]:
    """SIGKILL comes only after preStop, the drain and a margin."""
    for component, ending in timing.terminations(objects).items():
        needed = ending.withdrawal_seconds + ending.drain_seconds + timing.GRACE_MARGIN_SECONDS
        if ending.grace_seconds < needed:
            yield Finding(
                "grace-covers-exit",
                ending.where,
                f"the {component} has {ending.grace_seconds:g} s to end but needs {needed:g} s "
                f"({ending.withdrawal_seconds:g} withdrawal + {ending.drain_seconds:g} drain + "
                f"{timing.GRACE_MARGIN_SECONDS} margin)",
            )


def progress_covers_startup(objects: Objects) -> Iterator[Finding]:
    """A rollout is not called failed while a replica may still be loading."""
    for workload in objects.of("Deployment"):
        deadline = workload["spec"].get("progressDeadlineSeconds", 600)
        for found in containers(workload):
            probe = found.get("startupProbe")
            if probe is None:
                continue
            budget = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
            waits = budget + workload["spec"].get("minReadySeconds", 0)
            if deadline <= waits:
                yield Finding(
                    "progress-covers-startup",
                    name_of(workload),
                    f"progressDeadlineSeconds {deadline} does not exceed the {waits} s that a pod may need",
                )


def idle_connections_leave_first(objects: Objects) -> Iterator[Finding]:
    """No idle connection of the router outlives a replica's drain, or Triton would wait for it to the end."""
    envoy, endings = objects.envoy(), timing.terminations(objects)
    if envoy is None or "replica" not in endings or endings["replica"].drain_seconds < 2:
        return
    for cluster in timing.replica_clusters(envoy):
        idle = timing.upstream_idle_seconds(cluster)
        if idle >= endings["replica"].drain_seconds:
            yield Finding(
                "idle-connections-leave-first",
                f"router cluster {cluster['name']}",
                f"idle connections live {idle:g} s, a replica's drain {endings['replica'].drain_seconds:g} s",
            )


def writable_paths(objects: Objects) -> Iterator[Finding]:
    """A replica has the two writable places that Triton's Python backend needs, both of bounded size."""
    workload = objects.workload("replica")
    if workload is None:
        return
    mounts = {
        mount["mountPath"]: mount["name"] for mount in container(workload, "triton").get("volumeMounts", [])
    }
    volumes = {volume["name"]: volume for volume in pod_spec(workload).get("volumes", [])}
    for path, medium in (("/dev/shm", "Memory"), ("/tmp", None)):  # noqa: S108 - paths inside the pod
        volume = volumes.get(mounts.get(path, ""), {}).get("emptyDir")
        if volume is None or volume.get("medium") != medium or not volume.get("sizeLimit"):
            kind = "a memory emptyDir" if medium else "an emptyDir"
            yield Finding("writable-paths", name_of(workload), f"{path} is not {kind} with a size limit")


LIFECYCLE_RULES: tuple[Rule, ...] = (
    probes_distinct,
    grace_covers_exit,
    progress_covers_startup,
    idle_connections_leave_first,
    writable_paths,
)
