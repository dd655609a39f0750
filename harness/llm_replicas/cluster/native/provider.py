"""The story of a native cluster: up, down, and what can be done to it in between."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import urllib3.exceptions
from kubernetes import client

from llm_replicas.cluster.base import Cluster, node_port, read_service
from llm_replicas.cluster.native import binaries, bootstrap, preflight, processes, readiness, removal
from llm_replicas.cluster.native.archive import LABEL, read_archive
from llm_replicas.cluster.native.building import UP_SECONDS, Building
from llm_replicas.cluster.native.journal import Journal
from llm_replicas.cluster.native.layout import Layout
from llm_replicas.cluster.native.locks import cluster_lock
from llm_replicas.cluster.native.network import Network
from llm_replicas.cluster.native.node import Node
from llm_replicas.cluster.native.readiness import Deadline
from llm_replicas.cluster.native.shape import Shape
from llm_replicas.cluster.native.site import Site
from llm_replicas.cluster.native.subnet import Subnet
from llm_replicas.cluster.statefolder import default_state_root
from llm_replicas.errors import EnvironmentProblem, LlmReplicasError, UsageError

Say = Callable[[str], None]


class NativeCluster(Cluster):
    """A real Kubernetes of N nodes on this machine, each node a set of namespaces.

    `bin_dir` holds the programs, `pause_archive` the image that holds each pod's namespaces. `zones` are
    given to the
    nodes in turn. `extended_resources` is what each named node shall offer, as in
    {"node-1": {"nvidia.com/gpu": 4}}.
    Only `up` needs those; a cluster that runs is found again by name.
    """

    supports_node_faults = True

    def __init__(
        self,
        name: str,
        *,
        bin_dir: Path,
        pause_archive: Path | None = None,
        state_root: Path | None = None,
        nodes: int = 3,
        zones: Sequence[str] = (),
        extended_resources: Mapping[str, Mapping[str, int]] | None = None,
        subnet_wanted: str | None = None,
        say: Say = lambda _text: None,
    ) -> None:
        self.name = name
        self._bin_dir = bin_dir
        self._pause_archive = pause_archive
        self._layout = Layout(name, (state_root or default_state_root()).absolute())
        self._shape = Shape.checked(nodes, zones, extended_resources)
        self._subnet_wanted = subnet_wanted or os.environ.get("LLM_REPLICAS_SUBNET")
        self._say = say

    # What others need to know -------------------------------------------------------------------------------

    @property
    def cgroup(self) -> str:
        """The control group of the whole cluster, below each cgroup mount."""
        return self._layout.cgroup

    @property
    def kubeconfig(self) -> Path:
        """The owner's kubeconfig."""
        return self._layout.kubeconfig

    @property
    def context(self) -> str:
        """The only context in it."""
        return self.name

    @property
    def node_names(self) -> list[str]:
        """The nodes' names."""
        return self._running_shape().names

    @property
    def control_plane_address(self) -> str:
        """Address of the API server, DNS and NodePorts."""
        return self._running_subnet().control_plane

    @property
    def namespace(self) -> Path:
        """The control plane's network namespace, for `nsenter --net=`."""
        return self._site().network.namespace("cp")

    def node_address(self, node: str) -> str:
        """Address of a node."""
        return self._running_subnet().node(self._node(node).number)

    def endpoint(self, namespace: str, service: str, port_name: str) -> str:
        """Return the URL of a Service's NodePort on the control plane, which outlives every node."""
        port = node_port(read_service(self.api(), namespace, service), port_name)
        return f"http://{self.control_plane_address}:{port}"

    # Up -----------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Make the cluster ready for use; one that runs, is healthy and has the same shape is kept."""
        with cluster_lock(self._layout.lock):
            if self._layout.settings.exists():
                self._refuse_other_shape()
                problem = self._problem()
                if problem is None:
                    self._say(f"cluster {self.name} is already up")
                    return
                self._say(f"cluster {self.name} is not healthy ({problem}): making it anew")
            pause = self._pause_path()
            found = preflight.check(self._bin_dir, self._layout.root, self._shape.nodes)
            removal.remove(self._layout)
            try:
                Building(self._site(found), self._shape, pause, self._subnet_wanted, self._say).run()
            except BaseException:
                self._say(f"cluster {self.name} did not come up: removing what was made")
                removal.remove(self._layout)
                raise

    # Down and node faults -----------------------------------------------------------------------------------

    def down(self) -> None:
        """Remove every trace of the cluster, also one whose `up` was killed."""
        if problem := preflight.root_problem(os.geteuid()):
            raise EnvironmentProblem(f"removing cluster {self.name}: {problem}")
        with cluster_lock(self._layout.lock):
            removal.remove(self._layout)
        for folder in (self._layout.lock.parent, self._layout.root):
            try:
                folder.rmdir()
            except OSError:
                break  # another cluster's, or somebody else's files

    def kill_node(self, node: str) -> None:
        """Take the power from a node: its link goes dark, then everything on it dies at once."""
        self._node(node).kill()

    def pause_node(self, node: str) -> None:
        """Freeze every process of a node, daemons and pods."""
        self._node(node).pause()

    def resume_node(self, node: str) -> None:
        """Let a paused node run again."""
        self._node(node).resume()

    def start_node(self, node: str) -> None:
        """Give power back to a killed node and wait until it is Ready again."""
        member = self._node(node)
        if member.process() is not None:
            raise UsageError(f"{node} has power already; a paused node is resumed, a killed one started")
        api = self.api()
        member.plug_in()
        started = member.start()
        # The API server may still believe in the node of before: Ready counts once the new kubelet has said
        # so.
        deadline = Deadline.after(UP_SECONDS)
        before = bootstrap.last_heartbeat(api, node)
        readiness.until(
            lambda: bootstrap.last_heartbeat(api, node) != before and node in bootstrap.ready_nodes(api),
            [started],
            f"{node} is not Ready again",
            member.log("kubelet"),
            deadline,
        )
        bootstrap.advertise(api, node, self._running_shape().resources(node))

    # Images -------------------------------------------------------------------------------------------------

    def load_image(self, archive: Path) -> None:
        """Import a docker-archive on every node that has power, unless the same content is there already."""
        image = read_archive(archive)
        nodes = [node for node in self._nodes() if not self.image_present(node.name, image.names, image.digest)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.import_image(archive, f"{LABEL}={image.digest}"), nodes))

    def image_present(self, node: str, names: Sequence[str], digest: str) -> bool:
        """Return whether a node holds images of these names with this configuration digest."""
        images = self._node(node).images()
        return all(f"{LABEL}={digest}" in images.get(name, "") for name in names)

    # Inside -------------------------------------------------------------------------------------------------

    def _pause_path(self) -> Path:
        if self._pause_archive is None or not self._pause_archive.exists():
            raise UsageError(
                f"pause_archive: {self._pause_archive}; a docker-archive of the pause image is needed to make a cluster"
            )
        return self._pause_archive

    def _site(self, found: binaries.Binaries | None = None) -> Site:
        found = found or binaries.find(self._bin_dir)[0]
        journal = Journal(self._layout.journal)
        return Site(self._layout, found, journal, Network(found["ip"], self._layout.short_id, journal))

    def _nodes(self) -> list[Node]:
        site = self._site()
        return [Node(site, name, number) for number, name in enumerate(self.node_names, start=1)]

    def _node(self, name: str) -> Node:
        for node in self._nodes():
            if node.name == name:
                return node
        raise UsageError(f"no node {name!r} in cluster {self.name}; its nodes: {', '.join(self.node_names)}")

    def _settings(self) -> dict[str, Any]:
        try:
            settings: dict[str, Any] = json.loads(self._layout.settings.read_text())
        except FileNotFoundError:
            raise EnvironmentProblem(
                f"cluster {self.name} is not up ({self._layout.settings} is missing); bring it up first"
            ) from None
        return settings

    def _running_shape(self) -> Shape:
        return Shape(**self._settings()["shape"])

    def _running_subnet(self) -> Subnet:
        return Subnet(IPv4Network(self._settings()["subnet"]))

    def _refuse_other_shape(self) -> None:
        running = self._running_shape()
        if running != self._shape and self._problem() is None:
            raise UsageError(
                f"cluster {self.name} runs with {running}; asked for {self._shape}: take it down first, or "
                "use "
                "another name"
            )

    def _problem(self) -> str | None:
        """Return why a cluster that was up is no longer healthy, or None."""
        journal = Journal(self._layout.journal)
        latest = {process.name: process for process in processes.recorded(journal)}
        dead = sorted(name for name, process in latest.items() if not processes.alive(process))
        if dead:
            return f"ended: {', '.join(dead)}"
        try:
            missing = sorted(set(self.node_names) - bootstrap.ready_nodes(self.api()))
        except (LlmReplicasError, client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            return f"the API server does not answer: {error}"
        return f"not Ready: {', '.join(missing)}" if missing else None
