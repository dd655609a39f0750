"""The few API objects that a new cluster needs before it is of use."""

from typing import Any

from kubernetes import client

from llm_replicas.cluster.native.controlplane import KUBELET_CLIENT, MEMBERS

# A list as the API server's cache has it: what polls need no later than now, and never a wait for the cache.
FROM_CACHE: dict[str, Any] = {"resource_version": "0", "_request_timeout": 5}
DNS_ROLE = "llm-replicas:coredns"


def grant_rights(api: client.ApiClient) -> None:
    """Let the API server call kubelets, and CoreDNS read what it answers from, and nothing else."""
    rbac: Any = client.RbacAuthorizationV1Api(api)
    rbac.create_cluster_role(
        {
            "metadata": {"name": DNS_ROLE},
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                },
            ],
        }
    )
    for role, user in ((DNS_ROLE, MEMBERS["coredns"][0]), ("system:kubelet-api-admin", KUBELET_CLIENT)):
        rbac.create_cluster_role_binding(
            {
                "metadata": {"name": user},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            }
        )


def announce_control_plane(api: client.ApiClient, name: str, address: str) -> None:
    """Create a Node for the control plane, for as long as its kube-proxy starts.

    kube-proxy asks once for the addresses of its Node and waits 30 s if there is none. Nothing may be
    scheduled
    there, so the Node is withdrawn as soon as kube-proxy has read it.
    """
    core: Any = client.CoreV1Api(api)
    core.create_node({"metadata": {"name": name}, "spec": {"unschedulable": True}})
    core.patch_node_status(name, {"status": {"addresses": [{"type": "InternalIP", "address": address}]}})


def withdraw_control_plane(api: client.ApiClient, name: str) -> None:
    """Delete the Node that `announce_control_plane` created."""
    client.CoreV1Api(api).delete_node(name)


def ready_nodes(api: client.ApiClient) -> set[str]:
    """Return the names of the nodes that are Ready."""
    core: Any = client.CoreV1Api(api)
    nodes = core.list_node(**FROM_CACHE).items
    return {
        node.metadata.name
        for node in nodes
        for condition in node.status.conditions or []
        if condition.type == "Ready" and condition.status == "True"
    }


def last_heartbeat(api: client.ApiClient, node: str) -> str:
    """Return when a node's kubelet last reported that it is Ready or not."""
    core: Any = client.CoreV1Api(api)
    conditions = core.read_node_status(node, _request_timeout=5).status.conditions or []
    return next((str(c.last_heartbeat_time) for c in conditions if c.type == "Ready"), "")


def advertise(api: client.ApiClient, node: str, resources: dict[str, int]) -> None:
    """Give a node extended resources, as a device plugin would."""
    if resources:
        capacity = {name: str(count) for name, count in resources.items()}
        client.CoreV1Api(api).patch_node_status(node, {"status": {"capacity": capacity, "allocatable": capacity}})
