"""What a node is configured to be, and what an archive says about its image."""

import io
import json
import tarfile
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from llm_replicas.cluster.native import controlplane, nodeconfig
from llm_replicas.cluster.native.archive import read_archive
from llm_replicas.cluster.native.subnet import Subnet
from llm_replicas.errors import UsageError

PLACE = Subnet(IPv4Network("10.89.0.0/16"))


def archive(path: Path, manifest: object) -> Path:
    content = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as file:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return path


def test_kubelet_asks_the_api_server_who_may_call_it() -> None:
    path = Path("/x")
    settings = nodeconfig.kubelet(
        dns="10.89.0.1",
        cgroup_root="/a/b",
        client_authority=path,
        certificate=path,
        key=path,
        resolv_conf=path,
    )

    assert settings["authentication"]["anonymous"] == {"enabled": False}
    assert settings["authorization"] == {"mode": "Webhook"}
    assert settings["cgroupRoot"] == "/a/b"


def test_pods_of_a_node_get_addresses_of_its_own_24() -> None:
    conflist = json.loads(nodeconfig.pod_network(PLACE.node_pods(2)))

    assert conflist["plugins"][0]["ipam"]["ranges"] == [[{"subnet": "10.89.130.0/24"}]]


def test_every_kernel_setting_that_kubelet_writes_is_shielded() -> None:
    # From kubelet's setupKernelTunables.
    assert set(nodeconfig.KERNEL_SETTINGS) == {
        "vm/overcommit_memory",
        "vm/panic_on_oom",
        "kernel/panic",
        "kernel/panic_on_oops",
        "kernel/keys/root_maxkeys",
        "kernel/keys/root_maxbytes",
    }


def test_dns_records_live_five_seconds() -> None:
    corefile = controlplane.corefile(Path("/kubeconfig"), "dev", PLACE)

    assert "ttl 5" in corefile
    assert "cache 5" in corefile


def test_an_archive_tells_names_and_digest(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", [{"Config": "blobs/abc.json", "RepoTags": ["localhost/a:1"], "Layers": []}])

    image = read_archive(path)

    assert (image.names, image.digest) == (("localhost/a:1",), "abc")


@pytest.mark.parametrize("manifest", [[], [{"Config": "a.json", "RepoTags": []}], [{"RepoTags": ["a"]}] * 2])
def test_an_archive_without_exactly_one_named_image_is_refused(tmp_path: Path, manifest: object) -> None:
    with pytest.raises(UsageError, match="accepted: one named image"):
        read_archive(archive(tmp_path / "a.tar", manifest))


def test_a_file_that_is_no_archive_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_text("no")

    with pytest.raises(UsageError, match="buildah push"):
        read_archive(path)
