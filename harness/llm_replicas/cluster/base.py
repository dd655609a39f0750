"""What the harness asks of a cluster, whoever runs it."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from kubernetes import client

from llm_replicas.cluster.client import api_client, explain
from llm_replicas.errors import EnvironmentProblem, UsageError


class Cluster(ABC):
    """A Kubernetes cluster: where its API is, how to put an image on it, how to reach a Service.

    `name` names it in messages, `kubeconfig` and `context` are what kubectl and Helm are given.
    """

    name: str
    supports_node_faults: bool = False

    @property
    @abstractmethod
    def kubeconfig(self) -> Path | None:
        """The kubeconfig file; None means kubectl's own default."""

    @property
    def context(self) -> str | None:
        """The context in `kubeconfig`; None means its current one."""
        return None

    @abstractmethod
    def up(self) -> None:
        """Make the cluster ready for use; one that is running and healthy is kept."""

    @abstractmethod
    def down(self) -> None:
        """Remove everything that `up` made; nothing to remove is fine."""

    @abstractmethod
    def load_image(self, archive: Path) -> None:
        """Put the images of a docker-archive on every node."""

    @abstractmethod
    def endpoint(self, namespace: str, service: str, port_name: str) -> str:
        """Return the URL at which this machine reaches a port of a Service."""

    def kill_node(self, node: str) -> None:
        """Take the power from a node."""
        self._refuse_node_fault(f"killing node {node}")

    def pause_node(self, node: str) -> None:
        """Freeze everything that runs on a node."""
        self._refuse_node_fault(f"pausing node {node}")

    def resume_node(self, node: str) -> None:
        """Let a paused node run again."""
        self._refuse_node_fault(f"resuming node {node}")

    def start_node(self, node: str) -> None:
        """Give power back to a killed node and wait until it is Ready."""
        self._refuse_node_fault(f"starting node {node}")

    def api(self) -> client.ApiClient:
        """Return a client for the cluster's API server."""
        return api_client(self.kubeconfig, self.context)

    def _refuse_node_fault(self, doing: str) -> None:
        raise UsageError(
            f"{doing}: cluster {self.name!r} cannot do it; node faults need a cluster whose nodes the "
            "harness "
            "owns: --cluster native"
        )


def read_service(api: client.ApiClient, namespace: str, service: str) -> Any:
    """Read a Service, or raise a message that says what the API server answered."""
    try:
        return client.CoreV1Api(api).read_namespaced_service(service, namespace, _request_timeout=10)
    except Exception as error:
        raise explain(error, f"reading Service {namespace}/{service}") from error


def named_port(service: Any, port_name: str) -> Any:
    """Return the port of that name, or raise a message that lists the names there are."""
    ports = service.spec.ports or []
    for port in ports:
        if port.name == port_name:
            return port
    names = ", ".join(str(port.name) for port in ports) or "none"
    raise EnvironmentProblem(
        f"Service {service.metadata.namespace}/{service.metadata.name} has no port {port_name!r}; its ports: {names}"
    )


def node_port(service: Any, port_name: str) -> int:
    """Return the NodePort of that port, or raise a message that says how to get one."""
    port = named_port(service, port_name)
    if port.node_port:
        return int(port.node_port)
    raise EnvironmentProblem(
        f"Service {service.metadata.namespace}/{service.metadata.name} is of type {service.spec.type} and "
        "has no "
        f"NodePort for {port_name!r}; install with router.service.type=NodePort"
    )
