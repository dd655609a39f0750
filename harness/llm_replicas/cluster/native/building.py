"""What `up` does on a machine that has nothing of the cluster yet, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kubernetes import client

from llm_replicas.cluster.client import api_client
from llm_replicas.cluster.native import (
    bootstrap,
    cgroups,
    controlplane,
    hostwide,
    nodeconfig,
    processes,
    readiness,
    subnet,
)
from llm_replicas.cluster.native.archive import LABEL, read_archive
from llm_replicas.cluster.native.controlplane import Credentials
from llm_replicas.cluster.native.locks import host_lock
from llm_replicas.cluster.native.network import networks_in_use
from llm_replicas.cluster.native.node import Node
from llm_replicas.cluster.native.processes import Process
from llm_replicas.cluster.native.readiness import Deadline
from llm_replicas.cluster.native.shape import Shape
from llm_replicas.cluster.native.site import Site
from llm_replicas.cluster.native.subnet import Subnet

# Many times what a busy 2-core machine has needed.
UP_SECONDS = 120.0
# The control plane's kube-proxy bears this name; no Node does once it has started.
PROXY_NAME = "control-plane"


class Building:
    """One cluster being made. Parts start as early as what they need is there."""

    def __init__(
        self, site: Site, shape: Shape, pause_archive: Path, wanted: str | None, say: Callable[[str], None]
    ) -> None:
        self._site = site
        self._layout = site.layout
        self._shape = shape
        self._pause_archive = pause_archive
        self._pause = read_archive(pause_archive)
        self._wanted = wanted
        self._say = say
        self._deadline = Deadline.after(UP_SECONDS)
        self._running: list[Process] = []

    def run(self) -> None:
        """Build the cluster; returns when pods can be scheduled, found by name and reached."""
        began = time.monotonic()
        for folder in (self._layout.folder, self._layout.pki, self._layout.logs):
            folder.mkdir(parents=True, mode=0o700)
        # `down` may be called without the folder of binaries.
        self._site.journal.record("tool", name="ip", path=str(self._site.binaries["ip"]))
        place = self._claim_place()
        secrets = Credentials(self._layout.pki, self._layout.name, place)
        secrets.kubeconfig(self._layout.kubeconfig, "llm-replicas:owner", ("system:masters",))
        self._start_api_server(secrets, place)
        nodes = self._start_nodes(secrets, place)
        api = api_client(self._layout.kubeconfig)
        readiness.api_server(api, self._running, self._log("kube-apiserver"), self._deadline)
        self._say(f"API server ready after {time.monotonic() - began:.1f} s")
        self._start_control_plane(secrets, place, api)
        self._layout.api_ready.touch()
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._load_pause, nodes))
        readiness.nodes(api, self._running, nodes, self._deadline)
        self._say(f"{len(nodes)} nodes Ready after {time.monotonic() - began:.1f} s")
        for node in nodes:
            bootstrap.advertise(api, node.name, self._shape.resources(node.name))
        self._wait_for_services(api, place)
        settings = {"shape": asdict(self._shape), "subnet": str(place.network)}
        self._layout.settings.write_text(json.dumps(settings, indent=1))
        self._say(f"cluster {self._layout.name} is up after {time.monotonic() - began:.1f} s")

    def _claim_place(self) -> Subnet:
        """Choose a free subnet and take it, so that no other cluster's `up` can choose it too."""
        with host_lock():
            hostwide.prepare()
            taken = networks_in_use(self._site.binaries["ip"])
            place = subnet.choose(taken, int(self._layout.short_id[:2], 16), self._wanted)
            self._site.network.make_control_plane(place)
        return place

    def _start_api_server(self, secrets: Credentials, place: Subnet) -> None:
        tools = self._site.binaries
        self._spawn("etcd", controlplane.etcd(tools["etcd"], self._layout.folder / "etcd"))
        self._spawn("kube-apiserver", controlplane.api_server(tools["kube-apiserver"], secrets, place))

    def _start_nodes(self, secrets: Credentials, place: Subnet) -> list[Node]:
        """Start the nodes; their containerd comes up beside the API server, their kubelet waits for it."""
        proxy = secrets.member("kube-proxy")
        nodes = [Node(self._site, name, number) for number, name in enumerate(self._shape.names, start=1)]
        for node in nodes:
            self._site.network.make_node(node.number, node.name, place)
            node.configure(
                secrets,
                place,
                pause_image=self._pause.names[0],
                zone=self._shape.zone(node.number),
                proxy_kubeconfig=proxy,
            )
            node.start()
        self._site.network.connect_nodes(self._shape.names, place)
        return nodes

    def _load_pause(self, node: Node) -> None:
        readiness.runtime(node, self._deadline)
        node.import_image(self._pause_archive, f"{LABEL}={self._pause.digest}")

    def _start_control_plane(self, secrets: Credentials, place: Subnet, api: client.ApiClient) -> None:
        tools, folder = self._site.binaries, self._layout.folder
        manager = controlplane.controller_manager(tools["kube-controller-manager"], secrets, place)
        self._spawn("kube-controller-manager", manager)
        self._spawn("kube-scheduler", controlplane.scheduler(tools["kube-scheduler"], secrets))
        bootstrap.grant_rights(api)
        corefile = folder / "Corefile"
        corefile.write_text(controlplane.corefile(secrets.member("coredns"), self._layout.name, place))
        self._spawn("coredns", [str(tools["coredns"]), "-conf", str(corefile)])
        bootstrap.announce_control_plane(api, PROXY_NAME, place.control_plane)
        proxy = folder / "kube-proxy.json"
        settings = nodeconfig.kube_proxy(
            kubeconfig=self._layout.pki / "kube-proxy.kubeconfig",
            node=PROXY_NAME,
            pods=place.pods,
            node_ports=place.control_plane,
        )
        proxy.write_text(json.dumps(settings, indent=1))
        self._spawn("kube-proxy", [str(tools["kube-proxy"]), f"--config={proxy}"])

    def _wait_for_services(self, api: client.ApiClient, place: Subnet) -> None:
        """Wait until NodePorts, DNS and the first namespace's service account are there, as pods need "
        "them.
        """
        for process, what, port, path in (
            ("kube-proxy", "NodePorts", controlplane.PROXY_HEALTH_PORT, "healthz"),
            ("coredns", "DNS", controlplane.DNS_HEALTH_PORT, "ready"),
        ):
            url = f"http://{place.control_plane}:{port}/{path}"
            readiness.answers(url, self._running, what, self._log(process), self._deadline)
        bootstrap.withdraw_control_plane(api, PROXY_NAME)
        core: Any = client.CoreV1Api(api)
        readiness.until(
            lambda: any(
                account.metadata.name == "default"
                for account in core.list_namespaced_service_account("default", **bootstrap.FROM_CACHE).items
            ),
            self._running,
            "no service account in namespace default",
            self._log("kube-controller-manager"),
            self._deadline,
        )

    def _spawn(self, name: str, command: list[str]) -> None:
        """Start a member of the control plane in its network namespace."""
        inside = [str(self._site.binaries["nsenter"]), f"--net={self._site.network.namespace('cp')}"]
        process = processes.spawn(
            self._site.journal,
            name,
            [*inside, *command],
            log=self._log(name),
            environment=self._site.environment,
            cgroups=cgroups.make(f"{self._layout.cgroup}/control-plane", self._site.journal),
        )
        self._running.append(process)

    def _log(self, process: str) -> Path:
        return self._layout.logs / f"{process}.log"
