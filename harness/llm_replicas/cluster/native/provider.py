"""The story of a native cluster: up, down, and what can be done to it in between."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import urllib3.exceptions
from kubernetes import client, watch

from llm_replicas.cluster.base import Cluster, node_port, read_service
from llm_replicas.cluster.native import (
    binaries,
    bootstrap,
    cgroups,
    controlplane,
    nodeconfig,
    preflight,
    processes,
    removal,
    subnet,
)
from llm_replicas.cluster.native.archive import LABEL, read_archive
from llm_replicas.cluster.native.controlplane import Credentials
from llm_replicas.cluster.native.journal import Journal
from llm_replicas.cluster.native.layout import Layout, default_state_root
from llm_replicas.cluster.native.locks import cluster_lock, host_lock
from llm_replicas.cluster.native.network import Network, networks_in_use
from llm_replicas.cluster.native.node import Node
from llm_replicas.cluster.native.processes import Process
from llm_replicas.cluster.native.site import Site
from llm_replicas.cluster.native.subnet import Subnet
from llm_replicas.errors import EnvironmentProblem, LlmReplicasError, UsageError

Say = Callable[[str], None]
# Twice what a busy 2-core machine has needed.
UP_SECONDS = 120.0


@dataclass(frozen=True)
class Shape:
    """What a cluster was asked to be; one that runs with another shape is not reused."""

    nodes: int
    zones: list[str]
    extended_resources: dict[str, dict[str, int]]


class NativeCluster(Cluster):
    """A real Kubernetes of N nodes on this machine, each node a set of namespaces.

    `bin_dir` holds the programs, `pause_archive` the image that holds each pod's namespaces. `zones` are given to the
    nodes in turn. `extended_resources` is what each named node shall offer: {"node-1": {"nvidia.com/gpu": 4}}.
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
        if not 1 <= nodes <= subnet.MAX_NODES:
            raise UsageError(f"nodes: {nodes}; accepted: 1 to {subnet.MAX_NODES}")
        self.name = name
        self._bin_dir = bin_dir
        self._pause_archive = pause_archive
        self._layout = Layout(name, (state_root or default_state_root()).absolute())
        self._shape = Shape(
            nodes, list(zones), {node: dict(given) for node, given in (extended_resources or {}).items()}
        )
        names = [f"node-{number}" for number in range(1, nodes + 1)]
        if strangers := sorted(set(self._shape.extended_resources) - set(names)):
            raise UsageError(f"extended_resources: no node {', '.join(strangers)}; accepted: {', '.join(names)}")
        self._subnet_wanted = subnet_wanted
        self._say = say

    # What others need to know ------------------------------------------------------------------------------------

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
        return [f"node-{number}" for number in range(1, self._running_shape().nodes + 1)]

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

    # Up ----------------------------------------------------------------------------------------------------------

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
            found = preflight.check(self._bin_dir, self._layout.root, self._shape.nodes)
            removal.remove(self._layout, found["ip"])
            try:
                self._build(found)
            except BaseException:
                self._say(f"cluster {self.name} did not come up: removing what was made")
                removal.remove(self._layout, found["ip"])
                raise

    def _build(self, found: binaries.Binaries) -> None:
        began = time.monotonic()
        pause = self._pause()
        for folder in (self._layout.folder, self._layout.pki, self._layout.logs):
            folder.mkdir(parents=True, mode=0o700)
        site = self._site(found)
        place = self._claim_place(site)
        secrets = Credentials(self._layout.pki, self.name, place)
        secrets.kubeconfig(self._layout.kubeconfig, "llm-replicas:owner", ("system:masters",))
        running = self._start_api_server(site, secrets, place)
        nodes = self._start_nodes(site, secrets, place, pause.names[0])
        deadline = began + UP_SECONDS
        api = self._wait_for_api(running, deadline)
        self._say(f"API server ready after {time.monotonic() - began:.1f} s")
        running += self._start_control_plane(site, secrets, place, api)
        self._layout.api_ready.touch()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: self._load_pause(node, pause.digest, deadline), nodes))
        self._wait_for_nodes(api, running, nodes, deadline)
        self._say(f"{len(nodes)} nodes Ready after {time.monotonic() - began:.1f} s")
        for node in nodes:
            bootstrap.advertise(api, node.name, self._shape.extended_resources.get(node.name, {}))
        self._wait_for_services(api, running, place, deadline)
        settings = {"shape": asdict(self._shape), "subnet": str(place.network), "bin_dir": str(found.folder)}
        self._layout.settings.write_text(json.dumps(settings, indent=1))
        self._say(f"cluster {self.name} is up after {time.monotonic() - began:.1f} s")

    def _claim_place(self, site: Site) -> Subnet:
        """Choose a free subnet and take it, so that no other cluster's `up` can choose it too."""
        with host_lock():
            taken = list(networks_in_use(site.binaries["ip"]))
            place = subnet.choose(taken, int(self._layout.short_id[:2], 16), self._subnet_wanted)
            site.network.make_control_plane(place)
        return place

    def _start_api_server(self, site: Site, secrets: Credentials, place: Subnet) -> list[Process]:
        tools, folder = site.binaries, self._layout.folder
        return [
            self._spawn(site, "etcd", controlplane.etcd(tools["etcd"], folder / "etcd")),
            self._spawn(site, "kube-apiserver", controlplane.api_server(tools["kube-apiserver"], secrets, place)),
        ]

    def _start_control_plane(
        self, site: Site, secrets: Credentials, place: Subnet, api: client.ApiClient
    ) -> list[Process]:
        tools, folder = site.binaries, self._layout.folder
        manager = controlplane.controller_manager(tools["kube-controller-manager"], secrets, place)
        running = [
            self._spawn(site, "kube-controller-manager", manager),
            self._spawn(site, "kube-scheduler", controlplane.scheduler(tools["kube-scheduler"], secrets)),
        ]
        bootstrap.grant_rights(api)
        corefile = folder / "Corefile"
        corefile.write_text(controlplane.corefile(secrets.member("coredns"), self.name, place))
        running.append(self._spawn(site, "coredns", [str(tools["coredns"]), "-conf", str(corefile)]))
        bootstrap.announce_control_plane(api, self._proxy_name, place.control_plane)
        proxy = folder / "kube-proxy.json"
        settings = nodeconfig.kube_proxy(
            kubeconfig=self._proxy_kubeconfig,
            node=self._proxy_name,
            pods=place.pods,
            node_ports=place.control_plane,
        )
        proxy.write_text(json.dumps(settings, indent=1))
        running.append(self._spawn(site, "kube-proxy", [str(tools["kube-proxy"]), f"--config={proxy}"]))
        return running

    def _start_nodes(self, site: Site, secrets: Credentials, place: Subnet, pause_image: str) -> list[Node]:
        zones = self._shape.zones
        secrets.member("kube-proxy")
        nodes = [Node(site, f"node-{number}", number) for number in range(1, self._shape.nodes + 1)]
        for node in nodes:
            site.network.make_node(node.number, node.name, place)
            zone = zones[(node.number - 1) % len(zones)] if zones else None
            node.configure(
                secrets, place, pause_image=pause_image, zone=zone, proxy_kubeconfig=self._proxy_kubeconfig
            )
            node.start()
        site.network.connect_nodes(len(nodes), [node.name for node in nodes], place)
        return nodes

    def _spawn(self, site: Site, name: str, command: list[str]) -> Process:
        """Start a member of the control plane in its network namespace."""
        group = f"{self._layout.cgroup}/control-plane"
        return processes.spawn(
            site.journal,
            name,
            [str(site.binaries["nsenter"]), f"--net={site.network.namespace('cp')}", *command],
            log=self._layout.logs / f"{name}.log",
            environment=site.environment,
            cgroups=cgroups.make(group, site.journal),
        )

    # Waiting -----------------------------------------------------------------------------------------------------

    def _wait_for_api(self, running: list[Process], deadline: float) -> client.ApiClient:
        api = self.api()
        while True:
            processes.refuse_dead(running)
            try:
                if api.rest_client.request("GET", f"{api.configuration.host}/readyz", _request_timeout=2).status == 200:
                    return api
            except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
                pass
            self._refuse_late(deadline, "the API server does not answer", self._layout.logs / "kube-apiserver.log")
            time.sleep(0.1)  # there is nothing to watch before the API server answers

    def _load_pause(self, node: Node, digest: str, deadline: float) -> None:
        while not node.runtime_ready():
            node.refuse_dead()
            self._refuse_late(deadline, f"containerd on {node.name} does not answer", node.logs[1])
            time.sleep(0.1)  # containerd's socket appears before it answers, and tells nobody
        node.import_image(self._pause_path(), f"{LABEL}={digest}")

    def _wait_for_nodes(
        self, api: client.ApiClient, running: list[Process], nodes: list[Node], deadline: float
    ) -> None:
        wanted = {node.name for node in nodes}
        while not wanted <= bootstrap.ready_nodes(api):
            processes.refuse_dead(running)
            for node in nodes:
                node.refuse_dead()
            missing = sorted(wanted - bootstrap.ready_nodes(api))
            if missing:
                self._refuse_late(
                    deadline, f"not Ready: {', '.join(missing)}", self._layout.logs / f"{missing[0]}-kubelet.log"
                )
            # Woken by each change; the second bounds how long a daemon's death goes unnoticed.
            for event in watch.Watch().stream(client.CoreV1Api(api).list_node, timeout_seconds=1):
                if event["type"] == "MODIFIED" and wanted <= bootstrap.ready_nodes(api):
                    break

    def _wait_for_services(
        self, api: client.ApiClient, running: list[Process], place: Subnet, deadline: float
    ) -> None:
        """Wait until NodePorts, DNS and the first namespace's service account are there, as pods need them."""
        core = client.CoreV1Api(api)
        address = place.control_plane
        waits: list[tuple[str, str, Callable[[], bool]]] = [
            ("kube-proxy", "NodePorts", lambda: _answers(f"http://{address}:{controlplane.PROXY_HEALTH_PORT}/healthz")),
            ("coredns", "DNS", lambda: _answers(f"http://{address}:{controlplane.DNS_HEALTH_PORT}/ready")),
            (
                "kube-controller-manager",
                "service accounts",
                lambda: any(
                    account.metadata.name == "default"
                    for account in core.list_namespaced_service_account("default", _request_timeout=5).items
                ),
            ),
        ]
        for process, what, ready in waits:
            while not ready():
                processes.refuse_dead(running)
                self._refuse_late(deadline, f"{what} not ready", self._layout.logs / f"{process}.log")
                time.sleep(0.1)  # health endpoints can only be asked
        bootstrap.withdraw_control_plane(api, self._proxy_name)

    def _refuse_late(self, deadline: float, what: str, log: Path) -> None:
        if time.monotonic() > deadline:
            raise EnvironmentProblem(
                f"cluster {self.name}: {what} after {UP_SECONDS:.0f} s; is the machine overloaded? The end of "
                f"{log.name}:\n{processes.tail(log)}"
            )

    # Down and node faults ----------------------------------------------------------------------------------------

    def down(self) -> None:
        """Remove every trace of the cluster, also one whose `up` was killed."""
        if problem := preflight.root_problem(os.geteuid()):
            raise EnvironmentProblem(f"removing cluster {self.name}: {problem}")
        found, missing = binaries.find(self._bin_dir)
        if "ip" not in found.paths:
            raise EnvironmentProblem(f"removing cluster {self.name}: {missing[0]}")
        with cluster_lock(self._layout.lock):
            removal.remove(self._layout, found["ip"])
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
        member.start()
        deadline = time.monotonic() + UP_SECONDS
        # The API server may still believe in the node of before: Ready counts once the kubelet has restarted.
        beat = _heartbeat(api, node)
        while _heartbeat(api, node) == beat or node not in bootstrap.ready_nodes(api):
            member.refuse_dead()
            self._refuse_late(deadline, f"{node} is not Ready again", member.logs[-1])
            time.sleep(0.2)  # the lease is renewed every second or so
        bootstrap.advertise(api, node, self._running_shape().extended_resources.get(node, {}))

    # Images ------------------------------------------------------------------------------------------------------

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

    # Inside ------------------------------------------------------------------------------------------------------

    @property
    def _proxy_name(self) -> str:
        return "control-plane"

    @property
    def _proxy_kubeconfig(self) -> Path:
        return self._layout.pki / "kube-proxy.kubeconfig"

    def _pause_path(self) -> Path:
        if self._pause_archive is None or not self._pause_archive.exists():
            raise UsageError(
                f"pause_archive: {self._pause_archive}; a docker-archive of the pause image is needed to make a cluster"
            )
        return self._pause_archive

    def _pause(self) -> Any:
        return read_archive(self._pause_path())

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
                f"cluster {self.name} runs with {running}; asked for {self._shape}: take it down first, or use "
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


def _answers(url: str) -> bool:
    try:
        # Straight to the cluster, whatever proxy the caller's environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _heartbeat(api: client.ApiClient, node: str) -> str:
    """Return when a node's kubelet last said that it lives."""
    try:
        lease = client.CoordinationV1Api(api).read_namespaced_lease(node, "kube-node-lease", _request_timeout=5)
    except client.ApiException:
        return ""
    return str(lease.spec.renew_time)
