"""What a verdict is made from, as plain data. All times are seconds after the start of the run.

The run folder's files come in through `llm_replicas.judge`; nothing here knows of files.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_replicas.slo.model import Loosened, Slo
from llm_replicas.slo.samples import Samples


@dataclass(frozen=True)
class Phase:
    """One stretch of the plan."""

    name: str
    judged: bool
    fault: str | None = None
    """Kind of the fault that is injected in it."""

    @property
    def steady(self) -> bool:
        """Whether the requests of this phase decide the latency objectives."""
        return self.judged and self.fault is None


@dataclass(frozen=True)
class Drain:
    """One pod's way out."""

    pod: str
    ip: str | None = None
    deleted_s: float | None = None
    sigterm_s: float | None = None
    gone_s: float | None = None


@dataclass(frozen=True)
class FaultEvent:
    """One injected fault, with the moments at which its effects were observed."""

    kind: str
    phase: str
    requested_s: float | None = None
    t0_s: float | None = None
    healed_s: float | None = None
    ready_s: float | None = None
    """When the broken pod itself was ready again; None where it never came back under its address."""
    pod: str | None = None
    ip: str | None = None
    drains: tuple[Drain, ...] = ()
    in_flight_at_sigterm: int | None = None
    """As the injector counted it; used only where the records cannot tell."""
    error: str | None = None

    @property
    def graceful(self) -> bool:
        """Whether the fault gives the pods notice, so that they can drain."""
        return self.kind in {"podDelete", "replicaRollout", "routerRollout"}

    @property
    def on_router(self) -> bool:
        """Whether routers go rather than replicas."""
        return self.kind == "routerRollout"


@dataclass(frozen=True)
class RouterRequest:
    """One line of the router's access log."""

    start_s: float
    request_id: str
    upstream: str | None
    attempted: tuple[str, ...] = ()
    """Hosts that were tried, as ip:port, the last one included."""
    lost: bool = False
    """Whether the router itself gave the request up (a response flag or a status of 500 and above)."""


@dataclass(frozen=True)
class SelfCheck:
    """What the load generator found of itself and its machine; None is unknown."""

    reasons: tuple[str, ...] = ()
    """Why the run is invalid, in words; valid when there are none."""
    late_p50_ms: float | None = None
    late_p99_ms: float | None = None
    late_max_ms: float | None = None
    hub_lag_p99_ms: float | None = None
    cpu_p95_share: float | None = None
    host_busy_share: float | None = None
    host_pressure_share: float | None = None
    host_steal_share: float | None = None
    host_starved_share: float | None = None
    """Share of the seconds in which tasks of the host waited for a core too long."""


@dataclass(frozen=True)
class RunFacts:
    """Everything that is known of one run."""

    slo: Slo
    samples: Samples
    phases: tuple[Phase, ...] | None
    """None when the plan could not be read."""
    faults: tuple[FaultEvent, ...] = ()
    faults_recorded: bool = True
    """False when the run holds no list of faults at all."""
    router_log: tuple[RouterRequest, ...] | None = None
    self_check: SelfCheck = SelfCheck()
    scheduled: int | None = None
    """Requests in the stored schedule; None when there is no schedule."""
    missing: tuple[str, ...] = ()
    """Scheduled requests without a record."""
    repeated: int = 0
    """Records whose request id another record has as well."""
    unscheduled: int = 0
    """Records of requests that the schedule does not hold."""
    endpoint_withdrawal_s: float | None = None
    loosened: tuple[Loosened, ...] = ()
    """Promises weaker than the baseline's that nobody acknowledged."""
    pod_names: tuple[tuple[str, str], ...] = ()
    """Addresses of pods with their names, for reading only."""
    problems: tuple[str, ...] = ()
    """What could not be read, in words; each makes the run inconclusive."""
