"""The predictor's arithmetic, and the promises that it calls unkeepable."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_replicas.chart import timing
from llm_replicas.chart.objects import Objects, container, load_yaml, pod_spec

GOLDEN = Path(__file__).resolve().parents[2] / "chart" / "golden" / "standin.yaml"
STANDIN = list(yaml.safe_load_all(GOLDEN.read_text(encoding="utf-8")))

# From charts/llm-replicas/ci/standin-values.yaml.
REPLICAS, DNS_TTL, REFRESH, WITHDRAWAL, DRAIN, STARTUP = 3, 5, 1, 7, 60, 60
CHECK_INTERVAL, CHECK_TIMEOUT, CHECK_FAILURES, DEAD_PEER = 0.5, 1, 2, 6


def standin() -> Objects:
    return Objects(copy.deepcopy(STANDIN))


def with_envoy(objects: Objects, path: str, value: Any) -> Objects:
    """The same objects with one field of each replica cluster changed."""
    for item in objects.of("ConfigMap"):
        if "envoy.yaml" not in item["data"]:
            continue
        config = load_yaml(item["data"]["envoy.yaml"])
        for cluster in timing.replica_clusters(config):
            node: Any = cluster
            *parents, leaf = path.split(".")
            for parent in parents:
                node = node[int(parent)] if parent.isdigit() else node[parent]
            node[leaf] = value
        item["data"]["envoy.yaml"] = yaml.safe_dump(config)
    return objects


def with_slo(objects: Objects, **failover: Any) -> Objects:
    """The same objects with promises of their own."""
    for item in objects.of("ConfigMap"):
        if "slo.yaml" in item["data"]:
            item["data"]["slo.yaml"] = yaml.safe_dump({"slo": {"failover": failover}})
    return objects


def without_retries(objects: Objects) -> Objects:
    for item in objects.of("ConfigMap"):
        if "envoy.yaml" in item["data"]:
            config = load_yaml(item["data"]["envoy.yaml"])
            for listener in config["static_resources"]["listeners"]:
                manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
                for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
                    route.get("route", {}).pop("retry_policy", None)
            item["data"]["envoy.yaml"] = yaml.safe_dump(config)
    return objects


def broken(objects: Objects) -> set[str]:
    return {found.path for found in timing.unkeepable(objects)}


def test_the_stand_ins_worst_times() -> None:
    predicted = timing.predict(standin())

    assert predicted.replicas == REPLICAS
    assert predicted.startup_seconds == STARTUP
    assert predicted.forget_seconds == DNS_TTL + REFRESH + 1
    assert predicted.detect_seconds == CHECK_FAILURES * CHECK_INTERVAL
    assert predicted.notice_seconds == CHECK_FAILURES * (CHECK_INTERVAL + CHECK_TIMEOUT)
    assert predicted.release_seconds == DEAD_PEER
    assert predicted.leave_seconds == WITHDRAWAL + DRAIN
    assert predicted.serving_during_rollout == REPLICAS
    assert predicted.rollout_seconds == REPLICAS * (STARTUP + DNS_TTL + REFRESH + 1)
    assert predicted.capacity_after_loss == pytest.approx(2 / 3)


def test_an_in_place_rollout_waits_for_the_old_pod_too() -> None:
    objects = standin()
    objects.workload("replica")["spec"]["strategy"]["rollingUpdate"] = {"maxSurge": 0, "maxUnavailable": 1}

    predicted = timing.predict(objects)

    assert predicted.serving_during_rollout == REPLICAS - 1
    assert predicted.rollout_seconds == REPLICAS * (STARTUP + DNS_TTL + REFRESH + 1 + WITHDRAWAL + DRAIN)


def test_the_later_of_keepalive_and_user_timeout_releases_a_stream() -> None:
    objects = with_envoy(standin(), "upstream_connection_options.tcp_keepalive.keepalive_time", 20)

    assert timing.predict(objects).release_seconds == 20 + 3 * 1


def test_without_a_router_its_times_are_unknown() -> None:
    objects = Objects([item for item in standin() if not item["metadata"]["name"].endswith("-router")])

    predicted = timing.predict(objects)

    assert predicted.detect_seconds is predicted.forget_seconds is predicted.router_leave_seconds is None
    assert broken(objects) == set()


def test_the_stand_in_keeps_its_promises() -> None:
    assert broken(standin()) == set()


def test_no_withdrawal_breaks_zero_failed() -> None:
    objects = standin()
    container(objects.workload("replica"), "triton").pop("lifecycle")

    assert broken(objects) == {"slo.failover.podDelete.failedNew", "slo.failover.replicaRollout.failedNew"}


def test_no_drain_breaks_zero_cut() -> None:
    objects = standin()
    server = container(objects.workload("replica"), "triton")
    server["args"] = [arg for arg in server["args"] if "exit-timeout" not in arg] + ["--exit-timeout-secs=0"]

    assert broken(objects) == {"slo.failover.podDelete.cut", "slo.failover.replicaRollout.cut"}


def test_a_drain_shorter_than_the_promised_answer_breaks_zero_cut() -> None:
    objects = with_slo(standin(), podDelete={"failedNew": 0, "cut": 0})
    for item in objects.of("ConfigMap"):
        if "slo.yaml" in item["data"]:
            table = yaml.safe_load(item["data"]["slo.yaml"])
            table["slo"]["latency"] = {"e2e": {"quantile": 0.99, "seconds": 90}}
            item["data"]["slo.yaml"] = yaml.safe_dump(table)

    (found,) = timing.unkeepable(objects)

    assert found.path == "slo.failover.podDelete.cut"
    assert found.message == (
        "0 is promised, but requests get 60 s to end and may take 90 s; raise lifecycle.drainSeconds"
    )


def test_retries_off_breaks_zero_failed_at_a_kill() -> None:
    assert broken(without_retries(standin())) == {"slo.failover.podKill.failedNew"}


def test_slow_checks_break_the_time_to_recover() -> None:
    objects = with_envoy(standin(), "health_checks.0.interval", "0.6s")

    assert broken(objects) == {"slo.failover.podKill.timeToRecoverSeconds"}


def test_the_slowest_protocol_decides() -> None:
    objects = standin()
    for item in objects.of("ConfigMap"):
        if "envoy.yaml" in item["data"]:
            config = load_yaml(item["data"]["envoy.yaml"])
            timing.replica_clusters(config)[1]["health_checks"][0]["interval"] = "3s"
            item["data"]["envoy.yaml"] = yaml.safe_dump(config)

    assert timing.predict(objects).detect_seconds == 6


def test_nobody_can_save_a_killed_servers_streams() -> None:
    assert broken(with_slo(standin(), podKill={"failedNew": 0, "cut": 0})) == {"slo.failover.podKill.cut"}


def test_one_replica_cannot_promise_to_survive_itself() -> None:
    objects = standin()
    objects.workload("replica")["spec"]["replicas"] = 1

    assert broken(objects) == {"slo.failover.podDelete.failedNew", "slo.failover.podKill.failedNew"}


def test_a_router_that_leaves_at_once_breaks_its_rollout() -> None:
    objects = standin()
    hook = container(objects.workload("router"), "envoy")["lifecycle"]["preStop"]["exec"]
    hook["command"][-2:] = ["0", "0"]

    assert broken(objects) == {"slo.failover.routerRollout.failedNew", "slo.failover.routerRollout.cut"}


def test_terminations_are_read_from_the_pods() -> None:
    endings = timing.terminations(standin())

    assert endings["replica"] == timing.Termination(
        "Deployment/llm-llm-replicas-replica", WITHDRAWAL, DRAIN, 77
    )
    assert (
        endings["router"].grace_seconds
        == pod_spec(standin().workload("router"))["terminationGracePeriodSeconds"]
    )
