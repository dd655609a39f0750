"""What the cluster's authorities sign."""

import base64
import ipaddress
import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llm_replicas.cluster.native.certs import LIFETIME, Authority, Credential, token_key
from llm_replicas.cluster.native.controlplane import Credentials
from llm_replicas.cluster.native.subnet import Subnet

AUTHORITY = Authority("test authority")


def load(credential: Credential) -> x509.Certificate:
    return x509.load_pem_x509_certificate(credential.certificate)


def test_the_authority_may_sign_and_nothing_else_may() -> None:
    def may_sign(credential: Credential) -> bool:
        return load(credential).extensions.get_extension_for_class(x509.BasicConstraints).value.ca

    assert may_sign(AUTHORITY.credential)
    assert not may_sign(AUTHORITY.client("somebody"))
    assert not may_sign(AUTHORITY.server("something", ["localhost"]))


def test_a_client_bears_its_user_and_groups() -> None:
    subject = load(AUTHORITY.client("system:node:node-1", ["system:nodes"])).subject

    assert [a.value for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["system:node:node-1"]
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == ["system:nodes"]


def test_a_server_bears_names_and_addresses() -> None:
    certificate = load(AUTHORITY.server("api", ["kubernetes.default", "10.0.0.1"]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.DNSName) == ["kubernetes.default"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.1")]


def test_clients_and_servers_cannot_stand_in_for_each_other() -> None:
    def usage(credential: Credential) -> list[x509.ObjectIdentifier]:
        return list(load(credential).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    assert usage(AUTHORITY.client("somebody")) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert usage(AUTHORITY.server("something", [])) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_signatures_belong_to_the_authority_that_made_them() -> None:
    issued = load(AUTHORITY.client("somebody"))
    stranger = load(Authority("test authority").credential)

    issued.verify_directly_issued_by(load(AUTHORITY.credential))
    with pytest.raises(InvalidSignature):
        issued.verify_directly_issued_by(stranger)


def test_certificates_end_with_their_lifetime() -> None:
    certificate = load(AUTHORITY.client("somebody"))

    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= LIFETIME * 1.01
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def test_token_keys_are_a_pair_of_pem_files() -> None:
    private, public = token_key()

    assert private.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert public.startswith(b"-----BEGIN PUBLIC KEY-----")


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    Credentials(tmp_path, "test", Subnet(ipaddress.IPv4Network("10.89.0.0/16")))

    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_a_kubeconfig_holds_one_context_named_like_the_cluster(tmp_path: Path) -> None:
    secrets = Credentials(tmp_path, "test", Subnet(ipaddress.IPv4Network("10.89.0.0/16")))

    written = json.loads(secrets.kubeconfig(tmp_path / "kubeconfig", "me", ("us",)).read_text())

    assert written["current-context"] == written["contexts"][0]["name"] == "test"
    assert written["clusters"][0]["cluster"]["server"] == "https://10.89.0.1:6443"
    user = base64.b64decode(written["users"][0]["user"]["client-certificate-data"])
    assert "CN=me" in x509.load_pem_x509_certificate(user).subject.rfc4514_string()
