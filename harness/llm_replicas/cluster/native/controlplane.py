"""Command lines of the control plane, and the files they need."""

from pathlib import Path

from llm_replicas.cluster.native.certs import Authority, token_key, write_private
from llm_replicas.cluster.native.kubeconfig import write_kubeconfig
from llm_replicas.cluster.native.subnet import Subnet

PORT = 6443
DNS_HEALTH_PORT = 8181
PROXY_HEALTH_PORT = 10256
# Users of the kubeconfigs written here; their groups give rights where RBAC's defaults do.
MEMBERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "controller-manager": ("system:kube-controller-manager", ()),
    "scheduler": ("system:kube-scheduler", ()),
    "kube-proxy": ("system:kube-proxy", ()),
    "coredns": ("llm-replicas:coredns", ()),
}
KUBELET_CLIENT = "llm-replicas:apiserver-kubelet-client"


class Credentials:
    """Everything secret of one cluster; made once, in its folder `pki`."""

    def __init__(self, folder: Path, cluster: str, subnet: Subnet) -> None:
        self._folder = folder
        self._cluster = cluster
        self._server = f"https://{subnet.control_plane}:{PORT}"
        self._authority = Authority(f"{cluster} authority")
        front_proxy = Authority(f"{cluster} front proxy authority")
        self.authority = self._authority.credential.write(folder, "ca")[0]
        self.front_proxy_authority = front_proxy.credential.write(folder, "front-proxy-ca")[0]
        self.front_proxy = front_proxy.client("front-proxy-client").write(folder, "front-proxy-client")
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1"]
        names += ["kubernetes.default.svc.cluster.local", subnet.control_plane, subnet.api_service]
        self.api_server = self._authority.server("kube-apiserver", names).write(folder, "apiserver")
        self.kubelet_client = self._authority.client(KUBELET_CLIENT).write(folder, "kubelet-client")
        private, public = token_key()
        self.token_key, self.token_public_key = folder / "sa.key", folder / "sa.pub"
        write_private(self.token_key, private)
        write_private(self.token_public_key, public)

    def kubeconfig(self, path: Path, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Write a kubeconfig for a new client certificate."""
        credential = self._authority.client(user, groups)
        authority = self._authority.credential.certificate
        return write_kubeconfig(path, self._cluster, self._server, authority, credential)

    def member(self, name: str) -> Path:
        """Write the kubeconfig of a member of the control plane."""
        user, groups = MEMBERS[name]
        return self.kubeconfig(self._folder / f"{name}.kubeconfig", user, groups)

    def kubelet_server(self, node: str, address: str) -> tuple[Path, Path]:
        """Issue the serving certificate of a node's kubelet."""
        return self._authority.server(f"system:node:{node}", [node, address]).write(self._folder, f"kubelet-{node}")


def etcd(binary: Path, data: Path) -> list[str]:
    """Return etcd's command line. It listens inside the control plane's namespace only."""
    return [
        str(binary),
        f"--data-dir={data}",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",  # the data dies with the cluster anyway
    ]


def api_server(binary: Path, secrets: Credentials, subnet: Subnet) -> list[str]:
    """Return the API server's command line."""
    return [
        str(binary),
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={subnet.control_plane}",
        f"--secure-port={PORT}",
        f"--tls-cert-file={secrets.api_server[0]}",
        f"--tls-private-key-file={secrets.api_server[1]}",
        f"--client-ca-file={secrets.authority}",
        f"--service-cluster-ip-range={subnet.services}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={secrets.token_public_key}",
        f"--service-account-signing-key-file={secrets.token_key}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction,PodSecurity",
        "--allow-privileged=true",
        f"--kubelet-client-certificate={secrets.kubelet_client[0]}",
        f"--kubelet-client-key={secrets.kubelet_client[1]}",
        f"--kubelet-certificate-authority={secrets.authority}",
        # Node names are in no DNS that the API server could ask, so logs and exec go by address.
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={secrets.front_proxy_authority}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={secrets.front_proxy[0]}",
        f"--proxy-client-key-file={secrets.front_proxy[1]}",
        # Aggregated API servers are pods; their Service's address would need a kube-proxy in front of it.
        "--enable-aggregator-routing=true",
        "--profiling=false",
    ]


def controller_manager(binary: Path, secrets: Credentials, subnet: Subnet) -> list[str]:
    """Return kube-controller-manager's command line."""
    kubeconfig = secrets.member("controller-manager")
    return [
        str(binary),
        *_own_access(kubeconfig),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={secrets.token_key}",
        f"--root-ca-file={secrets.authority}",
        "--allocate-node-cidrs=false",
        # At the default of 20 requests a second its controllers take 4 s to start.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        f"--cluster-cidr={subnet.pods}",
    ]


def scheduler(binary: Path, secrets: Credentials) -> list[str]:
    """Return kube-scheduler's command line."""
    return [str(binary), *_own_access(secrets.member("scheduler"))]


def _own_access(kubeconfig: Path) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",  # there is one of each
        "--bind-address=127.0.0.1",
    ]


def corefile(kubeconfig: Path, context: str, subnet: Subnet) -> str:
    """Return CoreDNS's configuration. Records live 5 s, on which the chart's withdrawal time is computed."""
    return f"""cluster.local:53 in-addr.arpa:53 {{
    bind {subnet.control_plane}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig} {context}
        pods insecure
        ttl 5
    }}
    cache 5
    ready {subnet.control_plane}:{DNS_HEALTH_PORT}
}}

# No name outside the cluster exists, and a resolver should hear that at once.
.:53 {{
    bind {subnet.control_plane}
    errors
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""
