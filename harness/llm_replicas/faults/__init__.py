"""Faults, one file each: precondition, injection, the moment it took effect, and its healing."""

from llm_replicas.faults.base import Fault, FaultRecord, Target
from llm_replicas.faults.pod_delete import PodDelete
from llm_replicas.faults.pod_kill import PodKill
from llm_replicas.faults.rollout import ReplicaRollout, RouterRollout

FAULTS: dict[str, type[Fault]] = {
    fault.kind: fault for fault in (PodDelete, PodKill, ReplicaRollout, RouterRollout)
}

__all__ = ["FAULTS", "Fault", "FaultRecord", "PodDelete", "PodKill", "ReplicaRollout", "RouterRollout", "Target"]
