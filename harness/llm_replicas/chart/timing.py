"""Computes from rendered objects how long the mechanism may take, and which promises it can keep.

All figures are worst cases that follow from the configuration, not measurements; the gate measures.

  forget    delete of a replica -> no router sends there any more: DNS repeat + refresh + margin
  detect    SIGKILL of a server -> health checks have it out: each check is refused at once, so
            failures x interval; ejection is faster wherever there is traffic
  notice    power loss of a node -> health checks have it out: each check runs into its timeout, so
            failures x (interval + timeout)
  release   power loss of a node -> streams to it end: TCP user timeout or keepalive, whichever is later
  leave     delete of a pod -> it is gone: withdrawal + drain at most, then SIGKILL
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm_replicas.chart.objects import (
    Object,
    Objects,
    container,
    flags,
    load_yaml,
    name_of,
    pod_spec,
    seconds,
)
from llm_replicas.slo.model import FailoverObjective, Slo, load_slo

# The server sweeps in steps of 1 s and the kubelet must see the exit; the chart adds the same.
GRACE_MARGIN_SECONDS = 10
# What Envoy may repeat because no byte of an answer had arrived.
SAFE_RETRIES = frozenset({"connect-failure", "refused-stream", "reset", "reset-before-request"})
TCP_LEVEL, TCP_USER_TIMEOUT = 6, 18


@dataclass(frozen=True)
class Termination:
    """How a pod ends: it serves on, lets requests end, and is killed when its grace is over."""

    where: str
    withdrawal_seconds: float
    drain_seconds: float
    grace_seconds: float


@dataclass(frozen=True)
class Prediction:
    """The worst times of one release; None where the chart renders no router that could be asked."""

    replicas: int
    routers: int
    retry_attempts: int
    startup_seconds: float
    forget_seconds: float | None
    detect_seconds: float | None
    notice_seconds: float | None
    release_seconds: float | None
    leave_seconds: float
    router_leave_seconds: float | None
    serving_during_rollout: int
    rollout_seconds: float

    @property
    def capacity_after_loss(self) -> float:
        """Share of the fleet's capacity that is left when one replica is gone."""
        return (self.replicas - 1) / self.replicas


def terminations(objects: Objects) -> dict[str, Termination]:
    """How the pods of each component end."""
    found: dict[str, Termination] = {}
    replica, router = objects.workload("replica"), objects.workload("router")
    if replica is not None:
        server = container(replica, "triton")
        sleep = server.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        found["replica"] = _termination(replica, sleep, float(flags(server).get("exit-timeout-secs", 30)))
    if router is not None:
        hook = (
            container(router, "envoy")
            .get("lifecycle", {})
            .get("preStop", {})
            .get("exec", {})
            .get("command", [])
        )
        withdrawal, drain = (float(part) for part in hook[-2:]) if len(hook) >= 4 else (0.0, 0.0)
        found["router"] = _termination(router, withdrawal, drain)
    return found


def _termination(workload: Object, withdrawal: float, drain: float) -> Termination:
    grace = pod_spec(workload).get("terminationGracePeriodSeconds", 30)
    return Termination(name_of(workload), float(withdrawal), drain, float(grace))


def replica_clusters(envoy: Object) -> list[Object]:
    """The parts of Envoy's configuration that lead to replicas."""
    return [c for c in envoy["static_resources"]["clusters"] if c["name"].startswith("replicas-")]


def upstream_idle_seconds(cluster: Object) -> float:
    """How long an unused connection to a replica stays open."""
    options: dict[str, Any] = cluster.get("typed_extension_protocol_options", {})
    for protocol in options.values():
        idle = protocol.get("common_http_protocol_options", {}).get("idle_timeout")
        if idle is not None:
            return seconds(idle)
    return 3600.0


def predict(objects: Objects) -> Prediction:
    """The worst times that these objects allow."""
    replica, router, envoy = objects.workload("replica"), objects.workload("router"), objects.envoy()
    if replica is None:
        raise LookupError("no workload with component replica was rendered")
    endings = terminations(objects)
    replicas = int(replica["spec"].get("replicas", 1))
    startup = container(replica, "triton")["startupProbe"]
    startup_seconds = float(startup["periodSeconds"] * startup["failureThreshold"])
    rolling = replica["spec"]["strategy"]["rollingUpdate"]
    leave = endings["replica"].withdrawal_seconds + endings["replica"].drain_seconds
    # A surging rollout waits for the new pod, an in-place one also for the old pod to free its GPU.
    step = startup_seconds + replica["spec"].get("minReadySeconds", 0) + (0 if rolling["maxSurge"] else leave)
    ends = endings.get("router")
    return Prediction(
        replicas=replicas,
        routers=int(router["spec"].get("replicas", 1)) if router else 0,
        retry_attempts=_retry_attempts(envoy) if envoy else 0,
        startup_seconds=startup_seconds,
        forget_seconds=_lifecycle(objects).get("discoverySeconds") if envoy else None,
        detect_seconds=max(map(_detect, replica_clusters(envoy))) if envoy else None,
        notice_seconds=max(map(_notice, replica_clusters(envoy))) if envoy else None,
        release_seconds=max(map(_release, replica_clusters(envoy))) if envoy else None,
        leave_seconds=leave,
        router_leave_seconds=ends.withdrawal_seconds + ends.drain_seconds if ends else None,
        serving_during_rollout=replicas - int(rolling["maxUnavailable"]),
        rollout_seconds=step * replicas,
    )


def _retry_attempts(envoy: Object) -> int:
    attempts = [
        action.get("retry_policy", {}).get("num_retries", 0)
        for listener in envoy["static_resources"]["listeners"]
        if listener["name"] != "observe"
        for chain in listener["filter_chains"]
        for route in chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
        if (action := route.get("route")) is not None
    ]
    return min(attempts, default=0)


def _detect(cluster: Object) -> float:
    check = cluster["health_checks"][0]
    return float(check["unhealthy_threshold"] * seconds(check["interval"]))


def _notice(cluster: Object) -> float:
    check = cluster["health_checks"][0]
    return float(check["unhealthy_threshold"] * (seconds(check["interval"]) + seconds(check["timeout"])))


def _release(cluster: Object) -> float:
    keepalive = cluster["upstream_connection_options"]["tcp_keepalive"]
    silent = keepalive["keepalive_time"] + keepalive["keepalive_probes"] * keepalive["keepalive_interval"]
    options = cluster["upstream_bind_config"]["socket_options"]
    unacknowledged = [
        o["int_value"] / 1000 for o in options if (o["level"], o["name"]) == (TCP_LEVEL, TCP_USER_TIMEOUT)
    ]
    return float(max(silent, *unacknowledged))


def _lifecycle(objects: Objects) -> dict[str, Any]:
    for item in objects.of("ConfigMap"):
        text = item.get("data", {}).get("lifecycle.yaml")
        if text is not None:
            found: dict[str, Any] = load_yaml(text)
            return found
    return {}


@dataclass(frozen=True)
class Broken:
    """A promise that the mechanism cannot keep, and what would."""

    path: str
    message: str


def unkeepable(objects: Objects) -> Iterator[Broken]:
    """Every promise of the rendered SLO table that cannot hold, whatever the load."""
    table = objects.slo()
    if table is None:
        return
    slo, can, endings = load_slo(table), predict(objects), terminations(objects)
    yield from _delete(slo, "podDelete", can, endings["replica"])
    yield from _delete(slo, "replicaRollout", can, endings["replica"])
    yield from _kill(slo.failover.pod_kill, can)
    if "router" in endings:
        yield from _router(slo.failover.router_rollout, endings["router"])


def _delete(slo: Slo, kind: str, can: Prediction, ending: Termination) -> Iterator[Broken]:
    promise, path = slo.failover.of(kind), f"slo.failover.{kind}"
    if promise is None:
        return
    unseen = can.forget_seconds is not None and ending.withdrawal_seconds < can.forget_seconds
    if promise.failed_new == 0 and unseen:
        yield Broken(
            f"{path}.failedNew",
            f"0 is promised, but routers may send to a leaving replica for {can.forget_seconds:g} s and it "
            f"serves only {ending.withdrawal_seconds:g} s more; raise lifecycle.endpointWithdrawalSeconds",
        )
    if promise.failed_new == 0 and kind == "replicaRollout" and can.serving_during_rollout < 1:
        yield Broken(
            f"{path}.failedNew",
            "0 is promised, but no replica serves during a rollout; take rollout.mode surge",
        )
    if promise.failed_new == 0 and kind == "podDelete" and can.replicas < 2:
        yield Broken(
            f"{path}.failedNew", "0 is promised, but the only replica is deleted; give replicas 2 or more"
        )
    longest = slo.latency.e2e.seconds if slo.latency.e2e else 0.0
    if promise.cut == 0 and ending.drain_seconds <= longest:
        yield Broken(
            f"{path}.cut",
            f"0 is promised, but requests get {ending.drain_seconds:g} s to end"
            + (f" and may take {longest:g} s" if longest else "")
            + "; raise lifecycle.drainSeconds",
        )


def _kill(promise: FailoverObjective | None, can: Prediction) -> Iterator[Broken]:
    if promise is None:
        return
    path = "slo.failover.podKill"
    if promise.cut == 0:
        yield Broken(
            f"{path}.cut", "0 is promised, but streams on a killed server cannot be saved; say inFlight"
        )
    if promise.failed_new == 0 and can.replicas < 2:
        yield Broken(
            f"{path}.failedNew", "0 is promised, but there is no second replica; give replicas 2 or more"
        )
    if can.detect_seconds is None:
        return
    if promise.failed_new == 0 and can.retry_attempts < 1:
        yield Broken(
            f"{path}.failedNew",
            "0 is promised, but nothing is tried twice; set traffic.retries.attempts to 1",
        )
    for key, limit in (
        ("timeToRecoverSeconds", promise.time_to_recover_seconds),
        ("timeToDetectSeconds", promise.time_to_detect_seconds),
    ):
        if limit is not None and limit < can.detect_seconds:
            yield Broken(
                f"{path}.{key}",
                f"{limit:g} s is promised, but health checks may need {can.detect_seconds:g} s; shorten "
                "traffic.healthCheck.intervalSeconds or failures",
            )


def _router(promise: FailoverObjective | None, ending: Termination) -> Iterator[Broken]:
    if promise is None:
        return
    path = "slo.failover.routerRollout"
    if promise.failed_new == 0 and ending.withdrawal_seconds <= 0:
        yield Broken(
            f"{path}.failedNew",
            "0 is promised, but a leaving router serves no longer than its Service knows it; "
            "raise router.endpointWithdrawalSeconds",
        )
    if promise.cut == 0 and ending.drain_seconds <= 0:
        yield Broken(
            f"{path}.cut",
            "0 is promised, but a leaving router waits for no stream; raise router.drainSeconds",
        )
