"""Which addresses a cluster uses: one /16 that nothing else on this machine uses."""

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

from llm_replicas.errors import EnvironmentProblem, UsageError

MAX_NODES = 100


@dataclass(frozen=True)
class Subnet:
    """A cluster's /16 and where in it everything lies."""

    network: IPv4Network

    def _address(self, third: int, fourth: int) -> str:
        return str(self.network.network_address + (third << 8) + fourth)

    def _part(self, third: int, prefix: int) -> str:
        return f"{self._address(third, 0)}/{prefix}"

    @property
    def control_plane(self) -> str:
        """API server, DNS and NodePorts, as nodes, pods and this machine reach them."""
        return self._address(0, 1)

    def node(self, number: int) -> str:
        """Address of node 1, 2, …"""
        return self._address(0, 10 + number)

    @property
    def inner_gateway(self) -> str:
        """The control plane's end of the link to this machine."""
        return self._address(1, 1)

    @property
    def host(self) -> str:
        """Address of this machine's end of the link to the control plane."""
        return self._address(1, 2)

    @property
    def services(self) -> str:
        """Cluster IPs."""
        return self._part(64, 18)

    @property
    def api_service(self) -> str:
        """Cluster IP of the Service `kubernetes`: the first of the range, by Kubernetes' own rule."""
        return self._address(64, 1)

    @property
    def pods(self) -> str:
        """Addresses of all pods."""
        return self._part(128, 17)

    def node_pods(self, number: int) -> str:
        """Addresses of the pods on node 1, 2, …"""
        return self._part(128 + number, 24)


def candidates(start: int) -> Iterator[IPv4Network]:
    """All private /16 networks; `start` says where in 10.0.0.0/8 to begin."""
    for offset in range(256):
        yield IPv4Network(f"10.{(start + offset) % 256}.0.0/16")
    for second in range(16, 32):
        yield IPv4Network(f"172.{second}.0.0/16")
    for second in range(64, 128):
        yield IPv4Network(f"100.{second}.0.0/16")


def choose(taken: Iterable[IPv4Network], start: int, wanted: str | None = None) -> Subnet:
    """Return the first free /16, or the wanted one if it is free.

    Raises:
        UsageError: `wanted` is not a private /16.
        EnvironmentProblem: `wanted`, or every candidate, overlaps a network of this machine.

    """
    used = list(taken)
    if wanted is not None:
        network = _parse(wanted)
        rivals = [other for other in used if network.overlaps(other)]
        if rivals:
            raise EnvironmentProblem(
                f"subnet {wanted} collides with {_list(rivals)}, which this machine already routes; "
                "give another private /16, or none to have a free one chosen"
            )
        return Subnet(network)
    for network in candidates(start):
        if not any(network.overlaps(other) for other in used):
            return Subnet(network)
    raise EnvironmentProblem(
        "no private /16 is free: this machine routes "
        f"{_list([other for other in used if other.prefixlen < 16] or used)}; remove a route (a VPN?) or an "
        "old "
        "cluster (llm-replicas down), or name a /16 that may be hidden by the cluster: LLM_REPLICAS_SUBNET"
    )


def _parse(text: str) -> IPv4Network:
    try:
        network = IPv4Network(text)
    except (ipaddress.AddressValueError, ipaddress.NetmaskValueError, ValueError) as error:
        raise UsageError(f"subnet {text!r}: {error}; accepted: a private /16 such as 10.89.0.0/16") from error
    if network.prefixlen != 16 or not (network.is_private or network.overlaps(IPv4Network("100.64.0.0/10"))):
        raise UsageError(f"subnet {text!r}: accepted is a private /16 such as 10.89.0.0/16")
    return network


def _list(networks: list[IPv4Network]) -> str:
    return ", ".join(str(network) for network in networks)
