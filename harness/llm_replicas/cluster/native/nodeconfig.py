"""Configuration files of a node's daemons."""

import json
from pathlib import Path
from typing import Any

# Debian's and Ubuntu's kernels differ in their defaults; kubelet wants these.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}


def containerd(pause_image: str, plugins: Path, network: Path) -> str:
    """Return containerd's configuration.

    Root and state are the default ones, because every node has a /var/lib and a /run of its own.
    """
    return f"""version = 3
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile",
                    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs"]

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause_image}"

[plugins."io.containerd.cri.v1.runtime"]
  # Machines that are guests themselves lack CAP_SYS_RESOURCE and AppArmor's interface.
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plugins}"]
    conf_dir = "{network}"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


def pod_network(subnet: str) -> str:
    """Return the CNI configuration: each pod a point-to-point link, addresses from the node's own /24."""
    content = {
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    # In memory: addresses of pods that died with the node are free when it comes back.
                    "dataDir": "/run/cni-addresses",
                    "ranges": [[{"subnet": subnet}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"},
        ],
    }
    return json.dumps(content, indent=1)


def kubelet(
    *, dns: str, cgroup_root: str, client_authority: Path, certificate: Path, key: Path, resolv_conf: Path
) -> dict[str, Any]:
    """Return a KubeletConfiguration."""
    return {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [dns],
        "clusterDomain": "cluster.local",
        "resolvConf": str(resolv_conf),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(client_authority)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        "makeIPTablesUtilChains": False,
        # Nodes share one disk with everything else on the machine: only an almost full one counts.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        # Images are loaded, not pulled, so a collected one could not come back.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # Containers are killed here again and again on purpose; the usual wait before a restart, which grows from
        # 10 s to 5 minutes, would be all that a run sees.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 5,
        "oomScoreAdj": 0,
        "maxPods": 60,
    }


def kube_proxy(*, kubeconfig: Path, node: str, pods: str, node_ports: str) -> dict[str, Any]:
    """Return a KubeProxyConfiguration; `node_ports` is the address on which NodePorts listen."""
    return {
        "kind": "KubeProxyConfiguration",
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "hostnameOverride": node,
        "clusterCIDR": pods,
        "nodePortAddresses": [f"{node_ports}/32"],
        "healthzBindAddress": "0.0.0.0:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "oomScoreAdj": 0,
        # Limits of connection tracking belong to the whole machine: leave them alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
