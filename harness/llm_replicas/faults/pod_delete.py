"""Graceful delete of one replica: endpoints withdraw, it drains, it goes; nobody should notice."""

from __future__ import annotations

from typing import ClassVar

from kubernetes import client

from llm_replicas.cluster.client import explain
from llm_replicas.faults.base import Fault
from llm_replicas.faults.sigterm import SigtermWatcher


class PodDelete(Fault):
    """Deletes the oldest ready replica through the API, with the pod's own grace period."""

    kind: ClassVar[str] = "podDelete"

    def inject(self) -> None:
        """Delete the pod; T0 is the moment the API server had accepted the deletion."""
        pod = sorted(self.target.ready_pods("replica"), key=lambda p: p.metadata.creation_timestamp)[0]
        self.record.target = {"pod": pod.metadata.name, "ip": pod.status.pod_ip, "node": pod.spec.node_name}
        self._victim = pod.metadata.name
        self._sigterm = SigtermWatcher(self.target, [pod.metadata.name], self.clock)
        self.record.requested_wall = self.clock()
        try:
            self.target.core.delete_namespaced_pod(pod.metadata.name, self.target.namespace, _request_timeout=10)
        except Exception as error:
            raise explain(error, f"deleting pod {pod.metadata.name}") from error
        self.record.t0_wall = self.clock()

    def observe(self, pods: list[client.V1Pod]) -> None:
        """Note when the victim got SIGTERM and when it was gone."""
        seen = self._sigterm.seen.get(self._victim)
        if seen is not None:
            self.record.observations["sigterm_wall"] = seen
        if "gone_wall" not in self.record.observations and self._victim not in {p.metadata.name for p in pods}:
            self.record.observations["gone_wall"] = self.clock()
            self._sigterm.stop()
