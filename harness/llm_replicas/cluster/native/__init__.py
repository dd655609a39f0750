"""Real Kubernetes on one machine without a container engine: nodes are namespaces.

`provider` is the story of up and down; the other modules each own one kind of thing: `binaries`, `certs`,
`network`, `cgroups`, `processes`, `controlplane`, `node`, and `journal`, in which all of them write down
what they
are about to put on the machine.
"""

from llm_replicas.cluster.native.provider import NativeCluster

__all__ = ["NativeCluster"]
