"""Faults against a recording API: what is asked of the cluster, and which moments are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llm_replicas.errors import InvalidRun
from llm_replicas.faults import PodDelete, ReplicaRollout, pod_delete, rollout
from llm_replicas.faults import base as faults_base


def pod(name: str, *, ready: bool = True, terminating: bool = False, restarts: int = 0, age: int = 0) -> Any:
    return SimpleNamespace(
        metadata=SimpleNamespace(
            name=name, deletion_timestamp="now" if terminating else None, creation_timestamp=-age, labels={}
        ),
        spec=SimpleNamespace(node_name="n1"),
        status=SimpleNamespace(
            pod_ip=f"10.0.0.{len(name)}",
            phase="Running",
            conditions=[SimpleNamespace(type="Ready", status="True" if ready else "False")],
            container_statuses=[SimpleNamespace(restart_count=restarts, state=None)],
        ),
    )


def deployment(replicas: int, *, generation: int = 1, observed: int = 1, updated: int | None = None) -> Any:
    updated = replicas if updated is None else updated
    return SimpleNamespace(
        metadata=SimpleNamespace(generation=generation),
        spec=SimpleNamespace(replicas=replicas),
        status=SimpleNamespace(observed_generation=observed, updated_replicas=updated, available_replicas=updated),
    )


class FakeTarget:
    """Plays back a list of pod sets, one for each look, and records what was asked."""

    def __init__(self, looks: list[list[Any]], deployments: list[Any]) -> None:
        self.namespace, self.fullname, self.release = "llm", "llm", "llm"
        self.looks, self.deployments = looks, deployments
        self.asked: list[str] = []
        self.core = SimpleNamespace(
            delete_namespaced_pod=lambda name, namespace, **_: self.asked.append(f"delete {namespace}/{name}"),
            list_namespaced_pod=None,
        )
        self.apps = SimpleNamespace(
            read_namespaced_deployment=lambda *_a, **_k: self._next(self.deployments),
            patch_namespaced_deployment=self._patch,
        )

    def _patch(self, name: str, namespace: str, body: Any, **_: Any) -> Any:
        self.asked.append(f"patch {namespace}/{name}")
        return SimpleNamespace(metadata=SimpleNamespace(generation=2))

    @staticmethod
    def _next(items: list[Any]) -> Any:
        return items.pop(0) if len(items) > 1 else items[0]

    def pods(self, _component: str) -> list[Any]:
        return list(self._next(self.looks))

    def ready_pods(self, component: str) -> list[Any]:
        return [p for p in self.pods(component) if faults_base.is_ready(p)]

    def selector(self, component: str) -> str:
        return component


class Quiet:
    """A log follower that saw what it was told."""

    def __init__(self, _target: Any, pods: list[str], _clock: Any) -> None:
        self.seen = dict.fromkeys(pods, 107.0)

    def stop(self) -> None:
        pass


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_delete, "SigtermWatcher", Quiet)
    monkeypatch.setattr(rollout, "SigtermWatcher", Quiet)
    # Each look stands for one change that a watch would announce.
    monkeypatch.setattr(
        faults_base.watch, "Watch", lambda: SimpleNamespace(stream=lambda *_a, **_k: iter([{}]), stop=lambda: None)
    )


def ticking(start: float = 100.0) -> Any:
    now = [start - 1.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    return clock


def test_a_fault_refuses_to_start_when_a_pod_is_missing() -> None:
    target: Any = FakeTarget([[pod("a"), pod("b")]], [deployment(3)])

    with pytest.raises(InvalidRun, match="3 ready replica pods"):
        PodDelete(target, "delete").precondition()


def test_a_fault_refuses_to_start_while_an_old_pod_is_still_leaving() -> None:
    target: Any = FakeTarget([[pod("a"), pod("b"), pod("old", terminating=True)]], [deployment(2)])

    with pytest.raises(InvalidRun, match="old: terminating"):
        PodDelete(target, "delete").precondition()


def test_graceful_delete_takes_the_oldest_and_notes_its_moments() -> None:
    before = [pod("young", age=1), pod("oldest", age=9)]
    leaving = [pod("young"), pod("oldest", terminating=True), pod("new", ready=False)]
    after = [pod("young"), pod("new")]
    target: Any = FakeTarget([before, leaving, after], [deployment(2)])
    fault = PodDelete(target, "delete", clock=ticking())

    fault.inject()
    fault.wait_healed(5)

    assert target.asked == ["delete llm/oldest"]
    assert fault.record.target["pod"] == "oldest"
    assert fault.record.t0_wall is not None and fault.record.t0_wall > fault.record.requested_wall - 1e-9
    assert fault.record.observations["sigterm_wall"] == 107.0
    assert fault.record.healed_wall is not None
    assert fault.record.healed_wall >= fault.record.observations["gone_wall"]


def test_a_delete_is_not_healed_while_the_victim_still_drains() -> None:
    leaving = [pod("young"), pod("oldest", terminating=True), pod("new")]
    target: Any = FakeTarget([[pod("young", age=1), pod("oldest", age=9)], leaving], [deployment(2)])
    fault = PodDelete(target, "delete")
    fault.inject()

    with pytest.raises(InvalidRun, match="not whole again"):
        fault.wait_healed(0.2)

    assert fault.record.healed_wall is None


def test_a_rollout_waits_for_every_old_pod_to_go() -> None:
    old, mixed, done = [pod("a"), pod("b")], [pod("b", terminating=True), pod("x"), pod("y")], [pod("x"), pod("y")]
    target: Any = FakeTarget([old, old, mixed, done], [deployment(2, generation=2, observed=2)])
    fault = ReplicaRollout(target, "roll")

    fault.inject()
    fault.wait_healed(5)

    rows = fault.record.observations["pods"]
    assert set(rows) == {"a", "b"}
    assert all("gone_wall" in row and "deleted_wall" in row for row in rows.values())
