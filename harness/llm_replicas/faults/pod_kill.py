"""SIGKILL of one replica's server: no drain, no goodbye; only its own streams may be lost."""

from __future__ import annotations

import time
from typing import ClassVar

from kubernetes import client
from kubernetes.stream import stream

from llm_replicas.cluster.client import explain
from llm_replicas.errors import InvalidRun
from llm_replicas.faults.base import Fault, is_ready

# A shell that has not answered by then never will: its node is frozen or dark.
ANSWER_SECONDS = 20.0

# Found by name rather than by number: the pod shares one process namespace, so the server is not process 1.
# It tells the server's number first, because the container, this shell in it, dies with the server.
KILL_SCRIPT = (
    "for d in /proc/[0-9]*; do read -r c < $d/comm 2>/dev/null || continue; "
    'if [ "$c" = tritonserver ]; then echo "killing ${d#/proc/}"; kill -KILL "${d#/proc/}" && exit 0; fi; done; '
    "echo none; exit 1"
)


class PodKill(Fault):
    """Sends SIGKILL to tritonserver in one ready replica; the kubelet restarts the container in its pod."""

    kind: ClassVar[str] = "podKill"

    def inject(self) -> None:
        """Kill the server; T0 is the moment just before the signal, as told by the shell that sends it."""
        pod = sorted(self.target.ready_pods("replica"), key=lambda p: p.metadata.creation_timestamp)[0]
        self._victim = pod.metadata.name
        self._restarts = _restarts(pod)
        self.record.target = {"pod": pod.metadata.name, "ip": pod.status.pod_ip, "node": pod.spec.node_name}
        self.record.requested_wall = self.clock()
        # kubernetes.stream replaces the request method of the client it is given, so it gets one of its own.
        own = client.ApiClient(self.target.api.configuration)
        try:
            session = stream(
                client.CoreV1Api(own).connect_get_namespaced_pod_exec,
                pod.metadata.name,
                self.target.namespace,
                container="triton",
                command=["sh", "-c", KILL_SCRIPT],
                stdout=True,
                stderr=True,
                _preload_content=False,
            )
            told = ""
            deadline = time.monotonic() + ANSWER_SECONDS
            while time.monotonic() < deadline and session.is_open() and "\n" not in told:
                session.update(timeout=5)
                told += session.read_stdout(timeout=0) if session.peek_stdout() else ""
            moment = self.clock()
            session.close()
        except Exception as error:
            raise explain(error, f"sending SIGKILL to the server in {pod.metadata.name}") from error
        if "killing" not in told:
            raise InvalidRun(
                f"podKill: no tritonserver process was found in {pod.metadata.name} ({told.strip() or 'no answer'}); "
                "the pod needs lifecycle.shareProcessNamespace and a shell in its image"
            )
        self.record.t0_wall = moment

    def observe(self, pods: list[client.V1Pod]) -> None:
        """Note when the container had been restarted and when it was Ready again."""
        for pod in pods:
            if pod.metadata.name == self._victim and _restarts(pod) > self._restarts:
                self.record.observations.setdefault("restarted_wall", self.clock())
                if is_ready(pod):
                    self.record.observations.setdefault("ready_wall", self.clock())

    def whole(self, deployment: client.V1Deployment) -> bool:
        """Whole again only after the restart was seen: right after the kill the pod still looks Ready."""
        return "ready_wall" in self.record.observations and super().whole(deployment)


def _restarts(pod: client.V1Pod) -> int:
    return sum(status.restart_count for status in (pod.status.container_statuses or []))
