"""Which /16 a cluster takes."""

from ipaddress import IPv4Network

import pytest

from llm_replicas.cluster.native import network
from llm_replicas.cluster.native.subnet import MAX_NODES, Subnet, candidates, choose
from llm_replicas.errors import EnvironmentProblem, UsageError


def networks(*texts: str) -> list[IPv4Network]:
    return [IPv4Network(text) for text in texts]


def test_a_free_machine_gives_the_preferred_subnet() -> None:
    assert str(choose([], start=89).network) == "10.89.0.0/16"


def test_a_taken_subnet_is_passed_over() -> None:
    taken = networks("10.89.3.0/24", "10.90.0.0/16")

    assert str(choose(taken, start=89).network) == "10.91.0.0/16"


def test_a_machine_that_routes_all_of_ten_gets_another_range() -> None:
    assert str(choose(networks("10.0.0.0/8"), start=89).network) == "172.16.0.0/16"


def test_a_machine_without_a_free_subnet_is_told_what_takes_it() -> None:
    taken = networks("10.0.0.0/8", "172.16.0.0/12", "100.64.0.0/10")

    with pytest.raises(EnvironmentProblem, match=r"10\.0\.0\.0/8, 172.*remove a route"):
        choose(taken, start=0)


def test_a_wanted_subnet_is_given_when_free() -> None:
    assert str(choose([], start=0, wanted="10.7.0.0/16").network) == "10.7.0.0/16"


def test_a_wanted_subnet_that_collides_is_refused_with_its_rival() -> None:
    with pytest.raises(EnvironmentProblem, match=r"10\.7\.0\.0/16 collides with 10\.7\.1\.0/24"):
        choose(networks("10.7.1.0/24"), start=0, wanted="10.7.0.0/16")


@pytest.mark.parametrize("wanted", ["10.7.0.0/24", "8.8.0.0/16", "ten", "10.7.0.1/16"])
def test_a_wanted_subnet_must_be_a_private_16(wanted: str) -> None:
    with pytest.raises(UsageError, match="accepted"):
        choose([], start=0, wanted=wanted)


def test_every_candidate_is_private_and_named_once() -> None:
    found = list(candidates(200))

    assert len(found) == len(set(found))
    assert all(one.is_private or one.overlaps(IPv4Network("100.64.0.0/10")) for one in found)


def test_the_parts_of_a_subnet_lie_in_it_and_do_not_overlap() -> None:
    place = Subnet(IPv4Network("10.89.0.0/16"))
    nodes = IPv4Network(f"{place.control_plane}/24", strict=False)
    link = IPv4Network(f"{place.host}/30", strict=False)
    parts = [nodes, link, IPv4Network(place.services), IPv4Network(place.pods)]

    assert all(part.subnet_of(place.network) for part in parts)
    assert not any(a.overlaps(b) for i, a in enumerate(parts) for b in parts[:i])
    assert IPv4Network(place.node_pods(MAX_NODES)).subnet_of(IPv4Network(place.pods))
    assert place.node(MAX_NODES) in map(str, nodes.hosts())


def test_name_servers_count_as_taken(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(_ip: object, *_arguments: str) -> str:
        return '[{"dst": "default"}, {"dst": "10.1.0.0/16"}, {"dst": "10.2.3.4"}]'

    monkeypatch.setattr(network, "run_ip", said)
    monkeypatch.setattr(network, "_name_servers", lambda _path: iter(networks("10.3.0.2/32")))

    found = {str(one) for one in network.networks_in_use(tmp_path)}  # type: ignore[arg-type]

    assert found == {"10.1.0.0/16", "10.2.3.4/32", "10.3.0.2/32"}
