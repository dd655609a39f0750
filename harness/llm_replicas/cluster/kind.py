"""A cluster of containers, made by kind (https://kind.sigs.k8s.io) with Docker or another engine it knows."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from llm_replicas.cluster.base import Cluster, node_port, read_service
from llm_replicas.cluster.client import explain
from llm_replicas.cluster.statefolder import default_state_root
from llm_replicas.errors import EnvironmentProblem, UsageError

Runner = Callable[[Sequence[str]], str]

WAIT_SECONDS = 180


def run(command: Sequence[str]) -> str:
    """Run a command and return what it says; raises with its own words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise EnvironmentProblem(
            f"{command[0]} is not there; install it (https://kind.sigs.k8s.io needs Docker, Podman or "
            "nerdctl), or "
            "use --cluster native, which needs neither"
        ) from error
    if done.returncode:
        raise EnvironmentProblem(f"{' '.join(command)}:\n{done.stderr.strip() or done.returncode}")
    return done.stdout


class KindCluster(Cluster):
    """A kind cluster with one control-plane container and N worker containers.

    `image` pins the node image; None takes kind's own default. `runner` runs every command line.
    """

    supports_node_faults = True

    def __init__(
        self,
        name: str,
        *,
        nodes: int = 3,
        zones: Sequence[str] = (),
        image: str | None = None,
        state_root: Path | None = None,
        runner: Runner = run,
    ) -> None:
        if nodes < 1:
            raise UsageError(f"nodes: {nodes}; accepted: 1 or more")
        self.name = name
        self._nodes = nodes
        self._zones = list(zones)
        self._image = image
        self._folder = (state_root or default_state_root()) / "kind"
        self._runner = runner
        # kind's own switch; the engine's command line is the same for all three.
        self._engine = os.environ.get("KIND_EXPERIMENTAL_PROVIDER") or "docker"

    @property
    def kubeconfig(self) -> Path:
        """A file of this cluster's own, so that the user's kubeconfig stays as it is."""
        return self._folder / f"{self.name}.kubeconfig"

    @property
    def context(self) -> str:
        """The name that kind gives it."""
        return f"kind-{self.name}"

    def configuration(self) -> dict[str, Any]:
        """Return kind's cluster configuration."""
        nodes: list[dict[str, Any]] = [{"role": "control-plane"}]
        for number in range(self._nodes):
            node: dict[str, Any] = {"role": "worker"}
            if self._zones:
                node["labels"] = {"topology.kubernetes.io/zone": self._zones[number % len(self._zones)]}
            nodes.append(node)
        return {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": nodes}

    def up(self) -> None:
        """Create the cluster, or take up one of that name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self.name in self._runner(["kind", "get", "clusters"]).split():
            self._runner(["kind", "export", "kubeconfig", "--name", self.name, "--kubeconfig", str(self.kubeconfig)])
            return
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(self.configuration(), file)
            file.flush()
            command = ["kind", "create", "cluster", "--name", self.name, "--config", file.name]
            command += ["--kubeconfig", str(self.kubeconfig), "--wait", f"{WAIT_SECONDS}s"]
            if self._image:
                command += ["--image", self._image]
            try:
                self._runner(command)
            except BaseException:
                self.down()
                raise

    def down(self) -> None:
        """Delete the cluster and its kubeconfig."""
        self._runner(["kind", "delete", "cluster", "--name", self.name, "--kubeconfig", str(self.kubeconfig)])
        self.kubeconfig.unlink(missing_ok=True)
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def load_image(self, archive: Path) -> None:
        """Import a docker-archive on every node."""
        self._runner(["kind", "load", "image-archive", str(archive), "--name", self.name])

    def endpoint(self, namespace: str, service: str, port_name: str) -> str:
        """Return the URL of a NodePort on the control plane, whose container this machine reaches on Linux."""
        api = self.api()
        port = node_port(read_service(api, namespace, service), port_name)
        core: Any = client.CoreV1Api(api)
        try:
            node = core.read_node(f"{self.name}-control-plane", _request_timeout=10)
        except Exception as error:
            raise explain(error, f"reading the control plane's node of kind cluster {self.name}") from error
        address = next(a.address for a in node.status.addresses if a.type == "InternalIP")
        return f"http://{address}:{port}"

    def kill_node(self, node: str) -> None:
        """Take the power from a node: its link goes dark first, so that no connection is closed politely."""
        self._runner([self._engine, "exec", node, "ip", "link", "set", "eth0", "down"])
        self._runner([self._engine, "kill", node])

    def pause_node(self, node: str) -> None:
        """Freeze a node's container."""
        self._runner([self._engine, "pause", node])

    def resume_node(self, node: str) -> None:
        """Let a paused node run again."""
        self._runner([self._engine, "unpause", node])

    def start_node(self, node: str) -> None:
        """Start a node's container and wait until the node is Ready."""
        self._runner([self._engine, "start", node])
        command = ["kubectl", "--kubeconfig", str(self.kubeconfig), "--context", self.context]
        self._runner([*command, "wait", f"node/{node}", "--for=condition=Ready", f"--timeout={WAIT_SECONDS}s"])
