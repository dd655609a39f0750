"""A cluster that somebody else runs; all we have is a kubeconfig and perhaps only a namespaced Role."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kubernetes import client

from llm_replicas.cluster.base import Cluster, named_port, read_service
from llm_replicas.cluster.client import explain, reachable
from llm_replicas.errors import EnvironmentProblem, UsageError

Runner = Callable[[Sequence[str]], None]


def run(command: Sequence[str]) -> None:
    """Run a command; raises with its own words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise EnvironmentProblem(f"{command[0]} is not there; install it or put it into PATH") from error
    if done.returncode:
        raise EnvironmentProblem(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


class ExistingCluster(Cluster):
    """The cluster of a context of a kubeconfig.

    `url` is where its Service is reached, when that cannot be found out with the rights we have. Node faults are
    refused unless allowed, and then done by `node_commands`: for "kill", "pause", "resume" and "start" a
    command in which {node} stands for the node's name, as in {"kill": ["virsh", "destroy", "{node}"]}.
    """

    def __init__(
        self,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        url: str | None = None,
        allow_node_faults: bool = False,
        node_commands: Mapping[str, Sequence[str]] | None = None,
        runner: Runner = run,
    ) -> None:
        self.name = context or "existing"
        self.supports_node_faults = allow_node_faults
        self._kubeconfig = kubeconfig
        self._context = context
        self._url = url
        self._node_commands = dict(node_commands or {})
        self._runner = runner

    @property
    def kubeconfig(self) -> Path | None:
        """The kubeconfig that was given; None means kubectl's own default."""
        return self._kubeconfig

    @property
    def context(self) -> str | None:
        """The context that was given; None means the kubeconfig's current one."""
        return self._context

    def up(self) -> None:
        """Ask the API server whether it is there and knows us; makes nothing."""
        reachable(self.api())

    def down(self) -> None:
        """Leave the cluster as it is."""

    def load_image(self, archive: Path) -> None:
        """Refuse: nodes of others take images from a registry."""
        raise UsageError(
            f"loading {archive}: cluster {self.name} takes images from a registry only; push it there and "
            "set "
            "image.repository, image.tag and image.digest"
        )

    def endpoint(self, namespace: str, service: str, port_name: str) -> str:
        """Return the URL that was given, else the load balancer's, else a node's."""
        if self._url:
            return self._url
        found = read_service(self.api(), namespace, service)
        port = named_port(found, port_name)
        for ingress in (found.status.load_balancer and found.status.load_balancer.ingress) or []:
            return f"http://{ingress.ip or ingress.hostname}:{port.port}"
        if port.node_port:
            return f"http://{self._node_address()}:{port.node_port}"
        raise EnvironmentProblem(
            f"Service {namespace}/{service} is of type {found.spec.type} and has no address outside the "
            "cluster yet; "
            "give one with --url, or install with router.service.type=NodePort or LoadBalancer"
        )

    def kill_node(self, node: str) -> None:
        """Run the command that takes the power from a node."""
        self._node_fault("kill", node)

    def pause_node(self, node: str) -> None:
        """Run the command that freezes a node."""
        self._node_fault("pause", node)

    def resume_node(self, node: str) -> None:
        """Run the command that lets a paused node run again."""
        self._node_fault("resume", node)

    def start_node(self, node: str) -> None:
        """Run the command that gives a node its power back."""
        self._node_fault("start", node)

    def _node_fault(self, what: str, node: str) -> None:
        if not self.supports_node_faults:
            raise UsageError(
                f"{what} {node}: nodes of cluster {self.name} are somebody's; allow it with "
                "--allow-node-faults, or "
                "use --cluster native"
            )
        command = self._node_commands.get(what)
        if command is None:
            raise UsageError(
                f"{what} {node}: no command is known that does this to a node of cluster {self.name}; "
                f"accepted are {', '.join(sorted(self._node_commands)) or 'none'}; use --cluster native"
            )
        self._runner([word.replace("{node}", node) for word in command])

    def _node_address(self) -> str:
        """Return an address of a Ready node, the outer one first."""
        core: Any = client.CoreV1Api(self.api())
        try:
            nodes = core.list_node(_request_timeout=10).items
        except client.ApiException as error:
            if error.status == 403:
                raise EnvironmentProblem(
                    "the Service is reached at a node's address, but this account may not list nodes (a "
                    "namespaced "
                    "Role cannot allow it): give the address with --url http://HOST:PORT"
                ) from error
            raise explain(error, "listing nodes") from error
        except Exception as error:
            raise explain(error, "listing nodes") from error
        for kind in ("ExternalIP", "InternalIP"):
            for node in nodes:
                ready = any(c.type == "Ready" and c.status == "True" for c in node.status.conditions or [])
                for address in (node.status.addresses or []) if ready else []:
                    if address.type == kind:
                        return str(address.address)
        raise EnvironmentProblem("no node is Ready; kubectl get nodes says more; or give --url http://HOST:PORT")
