"""One node: a network, mount and PID namespace with containerd, kube-proxy and kubelet in it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llm_replicas.cluster.native import cgroups, nodeconfig, nodeinit, processes
from llm_replicas.cluster.native.controlplane import Credentials
from llm_replicas.cluster.native.processes import Process
from llm_replicas.cluster.native.site import Site
from llm_replicas.cluster.native.subnet import Subnet
from llm_replicas.errors import EnvironmentProblem

# Folders of the machine that a node sees its own version of: what daemons write to fixed places stays with
# it.
PRIVATE = {"/run": "memory", "/tmp": "disk", "/var/lib": "disk", "/var/log": "disk"}  # noqa: S108
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


class Node:
    """A node by its name; `number` is its place in the subnet, from 1."""

    def __init__(self, site: Site, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self._site = site
        self._folder = site.layout.node(name)

    @property
    def cgroup(self) -> str:
        """The control group of everything on the node, without its leading slash."""
        return f"{self._site.layout.cgroup}/{self.name}"

    def log(self, daemon: str) -> Path:
        """Log of a daemon of the node; `init` is its first process."""
        return self._site.layout.logs / f"{self.name}-{daemon}.log"

    def configure(
        self,
        secrets: Credentials,
        subnet: Subnet,
        *,
        pause_image: str,
        zone: str | None,
        proxy_kubeconfig: Path,
    ) -> None:
        """Write the node's files."""
        self._folder.mkdir(parents=True)
        network = self._folder / "network"
        network.mkdir()
        address = subnet.node(self.number)
        (network / "10-pods.conflist").write_text(nodeconfig.pod_network(subnet.node_pods(self.number)))
        (self._folder / "resolv.conf").write_text(f"nameserver {subnet.control_plane}\n")
        (self._folder / "containerd.toml").write_text(
            nodeconfig.containerd(pause_image, self._site.binaries.folder, network)
        )
        certificate, key = secrets.kubelet_server(self.name, address)
        kubeconfig = secrets.kubeconfig(
            self._folder / "kubelet.kubeconfig", f"system:node:{self.name}", ("system:nodes",)
        )
        kubelet = nodeconfig.kubelet(
            dns=subnet.control_plane,
            cgroup_root=f"/{self.cgroup}",
            client_authority=secrets.authority,
            certificate=certificate,
            key=key,
            resolv_conf=self._folder / "resolv.conf",
        )
        proxy = nodeconfig.kube_proxy(kubeconfig=proxy_kubeconfig, node=self.name, pods=subnet.pods, node_ports=address)
        (self._folder / "kubelet.json").write_text(json.dumps(kubelet, indent=1))
        (self._folder / "kube-proxy.json").write_text(json.dumps(proxy, indent=1))
        labels = {"topology.kubernetes.io/zone": zone} if zone else {}
        (self._folder / "node.json").write_text(json.dumps(self._init_settings(kubeconfig, address, labels), indent=1))

    def start(self) -> Process:
        """Give the node power: its first process prepares it and starts the daemons."""
        cgroups.make(self.cgroup, self._site.journal)
        self._ended.unlink(missing_ok=True)
        tools = self._site.binaries
        command = [
            *(str(tools["nsenter"]), f"--net={self._site.network.namespace(self.name)}"),
            *(str(tools["unshare"]), "--mount", "--pid", "--uts", "--fork"),
            *("--propagation", "private", "--kill-child=SIGKILL"),
            *(sys.executable, "-I", "-S", str(Path(nodeinit.__file__)), str(self._folder / "node.json")),
        ]
        return processes.spawn(
            self._site.journal,
            self.name,
            command,
            log=self.log("init"),
            environment=self._site.environment,
            cgroups=cgroups.below(self.cgroup, "daemons"),
        )

    def process(self) -> Process | None:
        """Return the process that holds the node, or None when it is without power."""
        for process in reversed(processes.recorded(self._site.journal)):
            if process.name == self.name and processes.alive(process):
                return process
        return None

    def refuse_dead(self) -> None:
        """Raise with the end of its log if the node or one of its daemons has ended."""
        if self._ended.exists():
            name, status = self._ended.read_text().split()[:2]
            raise EnvironmentProblem(
                f"{name} on {self.name} ended with status {status}; the end of its log:\n"
                f"{processes.tail(self.log(name))}"
            )
        if self.process() is None:
            raise EnvironmentProblem(f"{self.name} ended; the end of its log:\n{processes.tail(self.log('init'))}")

    def kill(self) -> None:
        """Take the power away: the cable first, so that no packet says goodbye, then every process at "
        "once.
        """
        self._site.network.set_node_link(self.name, up=False)
        process = self.process()
        if process is not None:
            # The kernel kills whatever is in a PID namespace together with its first process.
            first = processes.first_child(process.pid)
            if first is not None:
                os.kill(first, 9)
            processes.kill(process)
            self._thaw()  # what is frozen dies when it thaws
            processes.wait_gone([process], 10)
        self._wait_empty(10)
        # As after a reboot: kubelet would wait for the containers that stale groups promise.
        cgroups.remove_everywhere(self.cgroup)

    def pause(self) -> None:
        """Freeze daemons and pods."""
        cgroups.freeze(self.cgroup)

    def resume(self) -> None:
        """Let daemons and pods run again."""
        cgroups.thaw(self.cgroup)

    def plug_in(self) -> None:
        """Connect the node's cable again."""
        self._site.network.set_node_link(self.name, up=True)

    def runtime_ready(self) -> bool:
        """Return whether containerd answers."""
        return self._inside() is not None and self._ctr("version").returncode == 0

    def images(self) -> dict[str, str]:
        """Return the images on the node, by name, with the digest of their manifest."""
        done = self._ctr("images", "list")
        if done.returncode:
            raise EnvironmentProblem(f"listing images on {self.name}: {_words(done)}")
        rows = [line.split() for line in done.stdout.decode().splitlines()[1:]]
        return {row[0]: " ".join(row) for row in rows if row}

    def import_image(self, archive: Path, label: str) -> None:
        """Import a docker-archive; `label` is kept with its images to recognise them again."""
        # Read here and handed over as a stream, because the file may lie where the node sees a folder of its
        # own.
        with archive.open("rb") as stream:
            done = self._ctr("images", "import", "--local", "--label", label, "-", stdin=stream.fileno())
        if done.returncode:
            raise EnvironmentProblem(f"importing {archive} on {self.name}: {_words(done)}")

    def _ctr(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.CompletedProcess[bytes]":
        inside = self._inside()
        if inside is None:
            raise EnvironmentProblem(f"{self.name} has no power; start it first")
        tools = self._site.binaries
        return subprocess.run(
            [
                *(str(tools["nsenter"]), f"--target={inside}", "--mount"),
                *(str(tools["ctr"]), "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"),
                *("--connect-timeout", "2s", *arguments),
            ],
            stdin=stdin,
            capture_output=True,
            check=False,
            env=self._site.environment,
        )

    def _inside(self) -> int | None:
        process = self.process()
        return processes.first_child(process.pid) if process else None

    def _init_settings(self, kubeconfig: Path, address: str, labels: dict[str, str]) -> dict[str, object]:
        tools, layout = self._site.binaries, self._site.layout
        kubelet: Sequence[str] = [
            str(tools["kubelet"]),
            f"--config={self._folder / 'kubelet.json'}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={address}",
            f"--node-labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        ]
        daemons = [
            ("containerd", [str(tools["containerd"]), "--config", str(self._folder / "containerd.toml")], []),
            (
                "kube-proxy",
                [str(tools["kube-proxy"]), f"--config={self._folder / 'kube-proxy.json'}"],
                [str(layout.api_ready)],
            ),
            ("kubelet", kubelet, [str(layout.api_ready), CONTAINERD_SOCKET]),
        ]
        return {
            "name": self.name,
            "keep": [str(folder) for folder in (layout.folder, *tools.folders())],
            "private": [
                {"target": target, "source": str(self._folder / "private" / target.strip("/")), "kind": kind}
                for target, kind in PRIVATE.items()
            ],
            "shields": str(self._folder / "shields"),
            "kernel_settings": nodeconfig.KERNEL_SETTINGS,
            "ended": str(self._ended),
            "environment": self._site.environment,
            "daemons": [
                {"name": name, "command": list(command), "after": after, "log": str(self.log(name))}
                for name, command, after in daemons
            ],
        }

    @property
    def _ended(self) -> Path:
        return self._folder / "ended"

    def _thaw(self) -> None:
        try:
            cgroups.thaw(self.cgroup)
        except (EnvironmentProblem, OSError):
            return  # no freezer: then nothing is frozen

    def _wait_empty(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while left := cgroups.processes(self.cgroup):
            if time.monotonic() > deadline:
                raise EnvironmentProblem(f"{self.name} lost its power but processes {sorted(left)} are still there")
            time.sleep(0.01)  # the kernel needs a moment to take processes apart


def _words(done: "subprocess.CompletedProcess[bytes]") -> str:
    return done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
