"""Rolling the replicas or the routers under load: every pod is replaced, no request should be lost."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any, ClassVar

from kubernetes import client

from llm_replicas.cluster.client import explain
from llm_replicas.errors import InvalidRun
from llm_replicas.faults.base import Fault
from llm_replicas.faults.sigterm import SigtermWatcher

ANNOTATION = "llm-replicas.io/rolled-at"


class _Rollout(Fault):
    """Changes the pod template, as an upgrade does, and watches the rollout to its end."""

    def inject(self) -> None:
        """Change the template; T0 is the moment the controller had seen it."""
        name = f"{self.target.fullname}-{self.component}"
        self._old = {pod.metadata.name: pod.status.pod_ip for pod in self.target.pods(self.component)}
        self._sigterm = (
            SigtermWatcher(self.target, list(self._old), self.clock) if self.component == "replica" else None
        )
        stamp = dt.datetime.now(dt.UTC).isoformat()
        patch: dict[str, Any] = {"spec": {"template": {"metadata": {"annotations": {ANNOTATION: stamp}}}}}
        self.record.requested_wall = self.clock()
        self.record.target = {"deployment": name, "pods": dict(self._old)}
        try:
            changed = self.target.apps.patch_namespaced_deployment(
                name, self.target.namespace, patch, _request_timeout=10
            )
        except Exception as error:
            raise explain(error, f"rolling deployment {name}") from error
        deadline = time.monotonic() + 30
        for _pods in self._pod_sets(deadline):
            if (self._deployment().status.observed_generation or 0) >= changed.metadata.generation:
                self.record.t0_wall = self.clock()
                return
        raise InvalidRun(f"{self.kind}: the deployment controller did not take up the change of {name} in 30 s")

    def observe(self, pods: list[client.V1Pod]) -> None:
        """Note for each old pod when its deletion, its SIGTERM and its end were seen."""
        rows: dict[str, dict[str, Any]] = self.record.observations.setdefault(
            "pods", {name: {"ip": ip} for name, ip in self._old.items()}
        )
        present = {pod.metadata.name: pod for pod in pods}
        for name, row in rows.items():
            pod = present.get(name)
            if (pod is None or pod.metadata.deletion_timestamp is not None) and "deleted_wall" not in row:
                row["deleted_wall"] = self.clock()
            if self._sigterm and name in self._sigterm.seen:
                row["sigterm_wall"] = self._sigterm.seen[name]
            if pod is None and "gone_wall" not in row:
                row["gone_wall"] = self.clock()

    def wait_healed(self, timeout_seconds: float) -> None:
        """As every fault, and every old pod must be gone."""
        try:
            super().wait_healed(timeout_seconds)
        finally:
            if self._sigterm:
                self._sigterm.stop()


class ReplicaRollout(_Rollout):
    """Rolling upgrade of the replicas."""

    kind: ClassVar[str] = "replicaRollout"


class RouterRollout(_Rollout):
    """Rolling restart of the routers."""

    kind: ClassVar[str] = "routerRollout"
    component: ClassVar[str] = "router"
