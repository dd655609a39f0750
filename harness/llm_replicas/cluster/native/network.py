"""Network namespaces, links and routes of a cluster.

    this machine ──veth── control plane: bridge br0 ──veth── node 1, node 2, …  ──ptp── pods

The control plane's namespace has no default route, so no packet of a test can leave the machine.
"""

import contextlib
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

from llm_replicas.cluster.native.hostwide import NAMESPACES
from llm_replicas.cluster.native.journal import Journal
from llm_replicas.cluster.native.nodeinit import unmount
from llm_replicas.cluster.native.subnet import Subnet
from llm_replicas.errors import EnvironmentProblem

# Set in the environment of everything that is run for a cluster.
MARK = "LLM_REPLICAS_CLUSTER"
# The control plane's end of the link to this machine, and its bridge, need names in their own namespace only.
BRIDGE = "br0"
UPLINK = "host"


class Network:
    """The network of one cluster. `ip` is the path of iproute2's tool, `short_id` the cluster's id."""

    def __init__(self, ip: Path, short_id: str, journal: Journal) -> None:
        self._ip = ip
        self._journal = journal
        self._prefix = f"llmr-{short_id}"
        # A helper that outlives a killed `up` is found by its mark.
        self._environment = {**os.environ, MARK: short_id}

    @property
    def host_link(self) -> str:
        """Name of this machine's end of the link; at most 15 characters, as the kernel demands."""
        return self._prefix

    def namespace(self, member: str) -> Path:
        """File that names the network namespace of the control plane (`cp`) or of a node."""
        return NAMESPACES / f"{self._prefix}-{member}"

    def make_control_plane(self, subnet: Subnet) -> None:
        """Make the control plane's namespace with its bridge, and this machine's link and route to it."""
        self._add_namespace("cp")
        inside = self.namespace("cp").name
        self._run("-n", inside, "link", "add", BRIDGE, "type", "bridge")
        self._run("-n", inside, "addr", "add", f"{subnet.control_plane}/24", "dev", BRIDGE)
        self._run("-n", inside, "link", "set", BRIDGE, "up")
        self._journal.record("link", name=self.host_link)
        self._run(*("link", "add", self.host_link, "type", "veth", "peer", "name", UPLINK, "netns", inside))
        self._run("-n", inside, "addr", "add", f"{subnet.inner_gateway}/30", "dev", UPLINK)
        self._run("-n", inside, "link", "set", UPLINK, "up")
        self._run("addr", "add", f"{subnet.host}/30", "dev", self.host_link)
        self._run("link", "set", self.host_link, "up")
        self._journal.record("route", network=str(subnet.network), via=subnet.inner_gateway)
        self._run("route", "add", str(subnet.network), "via", subnet.inner_gateway, "dev", self.host_link)
        # Namespaces hold their own copy of this setting; the machine's is not touched.
        self._forward(inside)

    def make_node(self, number: int, node: str, subnet: Subnet) -> None:
        """Make a node's namespace, plugged into the control plane's bridge."""
        control_plane, inside = self.namespace("cp").name, self.namespace(node).name
        self._add_namespace(node)
        self._run(
            "-n",
            control_plane,
            *("link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", inside),
        )
        self._run("-n", inside, "addr", "add", f"{subnet.node(number)}/24", "dev", "eth0")
        self._run("-n", inside, "link", "set", "eth0", "up")
        self._run("-n", control_plane, "link", "set", node, "master", BRIDGE, "up")
        self._run("-n", inside, "route", "add", "default", "via", subnet.control_plane)
        self._forward(inside)
        self._run("-n", control_plane, "route", "add", subnet.node_pods(number), "via", subnet.node(number))

    def connect_nodes(self, nodes: list[str], subnet: Subnet) -> None:
        """Give every node the way to every other node's pods."""
        for number, node in enumerate(nodes, start=1):
            for other in range(1, len(nodes) + 1):
                if other != number:
                    self._run(
                        *("-n", self.namespace(node).name),
                        *("route", "add", subnet.node_pods(other), "via", subnet.node(other)),
                    )

    def set_node_link(self, node: str, up: bool) -> None:
        """Plug a node's cable in or pull it."""
        self._run("-n", self.namespace("cp").name, "link", "set", node, "up" if up else "down")

    def _add_namespace(self, member: str) -> None:
        name = self.namespace(member).name
        self._journal.record("netns", name=name)
        self._run("netns", "add", name)
        self._run("-n", name, "link", "set", "lo", "up")

    def _forward(self, name: str) -> None:
        subprocess.run(
            ["nsenter", f"--net={NAMESPACES / name}", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
            check=True,
            capture_output=True,
        )

    def _run(self, *arguments: str) -> None:
        run_ip(self._ip, *arguments, environment=self._environment)


def run_ip(ip: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run iproute2's tool; raises with its own words."""
    done = subprocess.run([str(ip), *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise EnvironmentProblem(f"ip {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def networks_in_use(ip: Path) -> Iterator[IPv4Network]:
    """Every network that this machine routes, has an address in, or asks for names."""
    for route in json.loads(run_ip(ip, "-j", "-4", "route", "show", "table", "all") or "[]"):
        destination = route.get("dst", "default")
        # The default route covers everything and collides with nothing: a cluster's own route is more exact.
        if destination not in ("default", "0.0.0.0/0"):
            yield IPv4Network(destination, strict=False)
    yield from _name_servers(Path("/etc/resolv.conf"))


def _name_servers(resolv_conf: Path) -> Iterator[IPv4Network]:
    if not resolv_conf.exists():
        return
    for line in resolv_conf.read_text(errors="replace").splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                yield IPv4Network(words[1])
            except ipaddress.AddressValueError:
                continue  # IPv6


def remove_link(ip: Path, name: str) -> None:
    """Delete a link of this machine; its routes go with it."""
    if Path("/sys/class/net", name).exists():
        run_ip(ip, "link", "delete", name)


def remove_namespace(name: str) -> None:
    """Delete a named network namespace, also one whose making was cut half-way."""
    path = NAMESPACES / name
    if not path.exists():
        return
    with contextlib.suppress(OSError):  # a name whose namespace was not mounted yet
        unmount(path)
    path.unlink(missing_ok=True)


def mounts() -> list[Path]:
    """Return every mount point that this process sees. (os.path.ismount overlooks bind mounts.)"""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
