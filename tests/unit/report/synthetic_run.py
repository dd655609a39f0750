"""Writes a run folder as a gate leaves it: steady load, four faults, router log, from a small simulation.

Everything follows from the constants below, so that tests derive their expectations from them.
"""

from __future__ import annotations

import copy
import datetime as dt
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from llm_replicas.load.plan import Plan, load_plan
from llm_replicas.load.records import Record, RecordWriter, to_table
from llm_replicas.load.schedule import SCHEMA as SCHEDULE_SCHEMA
from llm_replicas.load.schedule import phase_windows, to_bytes
from llm_replicas.slo.model import digest, load_slo

WALL_START = 1_780_000_000.0
RATE = 29.0
STEADY_REQUESTS = 6100
FAULT_SECONDS = 60.0
AFTER_SECONDS = 8.0
WITHDRAWAL_SECONDS = 7.0
LAST_NEW_SECONDS = 1.5
"""Deleted pods get new requests for so long after their deletion."""
DETECT_SECONDS = 0.3
"""The killed pod is tried for so long; the router then sends those requests elsewhere."""
RESTART_SECONDS = 9.0
TOKEN_SECONDS = 0.115
INTERVAL = 3
SLOW_TTFT_SECONDS = 5.0

SLO = {
    "slo": {
        "confidence": 0.95,
        "latency": {
            "ttft": {"quantile": 0.99, "seconds": 1.2},
            "largestGap": {"quantile": 0.99, "seconds": 0.9},
        },
        "errorRatio": 0.01,
        "stallSeconds": 10,
        "failover": {
            "podDelete": {"failedNew": 0, "cut": 0, "timeToRecoverSeconds": 1},
            "podKill": {"failedNew": 0, "cut": "inFlight", "timeToRecoverSeconds": 1},
            "replicaRollout": {"failedNew": 0, "cut": 0},
            "routerRollout": {"failedNew": 0, "cut": 0},
        },
    }
}
PHASES = (
    ("warm-up", 20.0, None),
    ("steady", None, None),
    ("pod-delete", FAULT_SECONDS, "podDelete"),
    ("pod-kill", FAULT_SECONDS, "podKill"),
    ("replica-rollout", FAULT_SECONDS, "replicaRollout"),
    ("router-rollout", FAULT_SECONDS, "routerRollout"),
)


@dataclass
class SyntheticRun:
    """The pieces of a run, for a test to spoil before they are written."""

    plan: Plan
    records: list[Record]
    faults: list[dict[str, Any]]
    router_log: list[dict[str, Any]]
    schedule: list[dict[str, Any]]
    slo: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(SLO)))
    environment: dict[str, Any] = field(
        default_factory=lambda: {
            "llm_replicas": "0.1.0",
            "kubernetes": "v1.36.2",
            "replicas": 3,
            "routers": 2,
            "replica_image": "localhost/llm-replicas-standin:dev",
            "endpoint_withdrawal_seconds": WITHDRAWAL_SECONDS,
            "stand_in": True,
            "host": {"cpus": 2, "memory_gib": 23.4, "kernel": "6.1.0"},
        }
    )

    def fault(self, kind: str) -> dict[str, Any]:
        """The fault of one kind."""
        return next(fault for fault in self.faults if fault["kind"] == kind)

    def of_phase(self, name: str) -> list[Record]:
        """The records of one phase, by due time."""
        return [record for record in self.records if record.phase == name]


Edit = Callable[[SyntheticRun], None]


def make_plan() -> Plan:
    """A plan as the gate's, without its trace phase."""
    phases = [
        {
            "name": name,
            "rate_per_second": RATE,
            "judged": name != "warm-up",
            **({"requests": STEADY_REQUESTS} if seconds is None else {"duration_seconds": seconds}),
            **({"fault": {"kind": kind, "after_seconds": AFTER_SECONDS}} if kind else {}),
        }
        for name, seconds, kind in PHASES
    ]
    return load_plan({"name": "synthetic", "seed": 11, "model": "ensemble", "phases": phases})


@functools.cache
def simulate(seed: int = 11) -> SyntheticRun:
    """A healthy run: fast answers, drains that lose nothing, a kill that cuts what was running there."""
    rng = np.random.default_rng(seed)
    plan = make_plan()
    run = SyntheticRun(plan, [], [], [], [])
    pods = _Pods()
    for phase, window in zip(plan.phases, phase_windows(plan), strict=True):
        count = phase.requests or int(RATE * phase.seconds)
        moments = np.sort(rng.uniform(window.start_s, window.end_s, count))
        if phase.fault:
            run.faults.append(pods.plan_fault(phase.fault.kind, phase.name, window.start_s + AFTER_SECONDS))
        for moment in moments:
            _request(run, pods, phase.name, float(moment), rng)
    pods.cut_the_killed(run)
    return run


def build(folder: Path, edit: Edit | None = None, *, seed: int = 11, sealed: bool = True) -> Path:
    """Write a run folder; `edit` may spoil it first."""
    run = copy.deepcopy(simulate(seed)) if edit else simulate(seed)
    if edit:
        edit(run)
    folder.mkdir(parents=True, exist_ok=True)
    table = load_slo(run.slo)
    stored = {"source": "configmap/llm/llm-slo", "digest": digest(table), "slo": table.as_yaml()}
    (folder / "slo.yaml").write_text(yaml.safe_dump(stored))
    (folder / "plan.yaml").write_text(yaml.safe_dump(run.plan.as_yaml()))
    (folder / "schedule.arrow").write_bytes(to_bytes(pa.Table.from_pylist(run.schedule, schema=SCHEDULE_SCHEMA)))
    (folder / "started.json").write_text(json.dumps({"wall_start": WALL_START, "workers": 1}))
    (folder / "environment.json").write_text(json.dumps(run.environment))
    (folder / "faults.json").write_text(json.dumps(run.faults))
    (folder / "cluster.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "wall": WALL_START,
                    "kind": "pod",
                    "name": f"llm-replica-{number}",
                    "ip": f"10.1.0.{number + 1}",
                }
            )
            + "\n"
            for number in range(7)
        )
    )
    (folder / "router-access.jsonl").write_text("".join(json.dumps(row) + "\n" for row in run.router_log))
    if sealed:
        pq.write_table(to_table(run.records), folder / "records.parquet")
    else:
        writer = RecordWriter(folder, "worker-0")
        for record in run.records:
            writer.add(record)
        writer.close()
    (folder / "generator").mkdir(exist_ok=True)
    seconds = int(run.plan.seconds)
    (folder / "generator" / "worker-0.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "t": float(second),
                    "wall": WALL_START + second,
                    "hub_lag_s": 0.002,
                    "cpu_share": 0.2,
                    "in_flight": 170,
                    "due": 29 * second,
                    "host_busy_share": 0.6,
                    "host_steal_share": 0.0,
                    "host_pressure_share": 0.2,
                }
            )
            + "\n"
            for second in range(seconds)
        )
    )
    return folder


class _Pods:
    """Which pods and routers take new requests at a moment."""

    def __init__(self) -> None:
        self.serving = {f"llm-replica-{number}": (f"10.1.0.{number + 1}", 0.0, 1e9) for number in range(3)}
        self.routers = {f"llm-router-{number}": (0.0, 1e9) for number in range(2)}
        self.killed: dict[str, Any] | None = None
        self._next = 3
        self._turn = 0

    def plan_fault(self, kind: str, phase: str, t0: float) -> dict[str, Any]:
        """Decide what happens; returns its entry in `faults.json`."""
        wall = WALL_START + t0
        fault: dict[str, Any] = {
            "kind": kind,
            "phase": phase,
            "requested_wall": wall - 0.02,
            "t0_wall": wall,
            "healed_wall": wall + 15.0,
            "target": {},
            "observations": {},
            "error": None,
        }
        if kind == "podDelete":
            pod = self._alive()[0]
            fault["target"] = {"pod": pod, "ip": self.serving[pod][0], "node": "node-0"}
            fault["observations"] = {
                "sigterm_wall": wall + WITHDRAWAL_SECONDS,
                "gone_wall": wall + WITHDRAWAL_SECONDS + 5,
            }
            self._replace(pod, t0)
        elif kind == "podKill":
            pod = self._alive()[0]
            ip = self.serving[pod][0]
            fault["target"] = {"pod": pod, "ip": ip, "node": "node-1"}
            fault["observations"] = {"ready_wall": wall + RESTART_SECONDS}
            self.killed = {"pod": pod, "ip": ip, "t0": t0}
        elif kind == "replicaRollout":
            rows = {}
            for number, pod in enumerate(self._alive()):
                deleted = t0 + 2 + 12 * number
                rows[pod] = {
                    "ip": self.serving[pod][0],
                    "deleted_wall": WALL_START + deleted,
                    "sigterm_wall": WALL_START + deleted + WITHDRAWAL_SECONDS,
                    "gone_wall": WALL_START + deleted + WITHDRAWAL_SECONDS + 4,
                }
                self._replace(pod, deleted)
            fault["target"] = {
                "deployment": "llm-replica",
                "pods": {name: row["ip"] for name, row in rows.items()},
            }
            fault["observations"] = {"pods": rows}
            fault["healed_wall"] = wall + 40
        else:
            rows = {}
            for number, router in enumerate(sorted(self.routers)):
                deleted = t0 + 3 + 12 * number
                rows[router] = {"ip": f"10.2.0.{number + 1}", "deleted_wall": WALL_START + deleted}
                rows[router]["gone_wall"] = WALL_START + deleted + 20
                self.routers[router] = (0.0, deleted + 0.2)
                self.routers[f"llm-router-{number + 2}"] = (deleted - 1.0, 1e9)
            fault["target"] = {
                "deployment": "llm-router",
                "pods": {name: row["ip"] for name, row in rows.items()},
            }
            fault["observations"] = {"pods": rows}
            fault["healed_wall"] = wall + 30
        return fault

    def _alive(self) -> list[str]:
        return sorted(name for name, (_, _, until) in self.serving.items() if until > 1e8)

    def _replace(self, pod: str, deleted: float) -> None:
        ip, since, _ = self.serving[pod]
        self.serving[pod] = (ip, since, deleted + LAST_NEW_SECONDS)
        self.serving[f"llm-replica-{self._next}"] = (f"10.1.0.{self._next + 1}", deleted + 2.0, 1e9)
        self._next += 1

    def pick(self, moment: float) -> tuple[str, str | None]:
        """The host that answers, and the dead one that was tried before, if any."""
        hosts = [ip for ip, since, until in self.serving.values() if since <= moment < until]
        self._turn += 1
        host = hosts[self._turn % len(hosts)]
        dead = self.killed
        if dead and dead["t0"] <= moment < dead["t0"] + RESTART_SECONDS and host == dead["ip"]:
            tried = host if moment < dead["t0"] + DETECT_SECONDS else None
            others = [ip for ip in hosts if ip != host]
            return others[self._turn % len(others)], tried
        return host, None

    def router(self, moment: float) -> str:
        """The router a request reaches."""
        names = [name for name, (since, until) in self.routers.items() if since <= moment < until]
        return names[self._turn % len(names)]

    def cut_the_killed(self, run: SyntheticRun) -> None:
        """Streams that ran on the killed pod end there; those without a token yet were retried elsewhere."""
        assert self.killed is not None
        t0, host = self.killed["t0"], f"{self.killed['ip']}:8000"
        rows = {row["request_id"]: row for row in run.router_log}
        for record in run.records:
            assert record.sent_s is not None and record.end_s is not None and record.first_byte_s is not None
            if record.replica != host or not record.sent_s <= t0 < record.end_s:
                continue
            if record.protocol == "generate" or record.first_byte_s > t0:
                record.replica = "10.1.0.2:8000" if host != "10.1.0.2:8000" else "10.1.0.3:8000"
                row = rows[record.request_id]
                row |= {
                    "upstream": record.replica,
                    "hosts_attempted": f"{host},{record.replica}",
                    "attempts": 2,
                }
                continue
            cut(record, t0 + 0.01)
            rows[record.request_id] |= {"flags": "UC", "duration_ms": int((t0 + 0.01 - record.sent_s) * 1000)}


def cut(record: Record, moment: float) -> None:
    """Make a stream end in its middle."""
    assert record.first_byte_s is not None
    record.outcome, record.error_class, record.error_detail = "cut", "reset", "connection reset by peer"
    record.end_s = moment
    record.events = max(1, int((moment - record.first_byte_s) / (TOKEN_SECONDS * INTERVAL)))
    record.received_tokens = min(record.wanted_tokens - 1, record.events * INTERVAL) or 1
    record.gaps_s = record.gaps_s[: record.events - 1]
    record.finish_reason = None


def fail(record: Record, error_class: str = "http_503") -> None:
    """Make a request end without a token."""
    assert record.sent_s is not None
    record.outcome, record.error_class, record.error_detail = "failed", error_class, "no healthy upstream"
    record.first_byte_s, record.end_s = None, record.sent_s + 0.05
    record.received_tokens, record.events, record.gaps_s, record.finish_reason = 0, 0, [], None


def _request(run: SyntheticRun, pods: _Pods, phase: str, due: float, rng: np.random.Generator) -> None:
    number = len(run.records)
    identity = f"{number:032x}"
    protocol = str(rng.choice(["generate_stream", "grpc_stream", "generate"], p=[0.85, 0.10, 0.05]))
    tokens = int(min(250, max(1, rng.gamma(1.3, 41))))
    prompt = int(min(414, max(1, rng.gamma(1.0, 115))))
    ip, dead = pods.pick(due)
    host = f"{ip}:{8001 if protocol == 'grpc_stream' else 8000}"
    sent = due + float(rng.exponential(0.0015))
    first = sent + 0.12 + 0.00033 * prompt + float(rng.gamma(2.0, 0.06)) + (0.05 if dead else 0.0)
    events = -(-tokens // INTERVAL)
    gaps = (TOKEN_SECONDS * INTERVAL * rng.lognormal(0.0, 0.12, max(0, events - 1))).tolist()
    end = first + sum(gaps) + 0.002
    if protocol == "generate":
        first, events, gaps = end, 1, []
    run.records.append(
        Record(
            request_id=identity,
            worker="worker-0",
            phase=phase,
            protocol=protocol,
            scheduled_s=due,
            wall_start=WALL_START,
            prompt_tokens=prompt,
            wanted_tokens=tokens,
            outcome="ok",
            sent_s=sent,
            first_byte_s=first,
            end_s=end,
            connection_id=f"c{number % 64}",
            connection_reused=number >= 64,
            received_tokens=tokens,
            events=events,
            gaps_s=gaps,
            finish_reason="length",
            status=200,
            attempts=2 if dead else 1,
            router=pods.router(due),
            replica=host,
            bytes=90 * events,
        )
    )
    run.schedule.append(
        {
            "request_id": identity,
            "phase": phase,
            "due_s": due,
            "protocol": protocol,
            "prompt_tokens": prompt,
            "max_tokens": tokens,
        }
    )
    run.router_log.append(
        {
            "time": dt.datetime.fromtimestamp(WALL_START + sent + 0.001, dt.UTC).isoformat().replace("+00:00", "Z"),
            "request_id": identity,
            "method": "POST",
            "path": "/v2/models/ensemble/generate_stream",
            "status": 200,
            "flags": "-",
            "duration_ms": int((end - sent) * 1000),
            "upstream": host,
            "attempts": 2 if dead else 1,
            "hosts_attempted": f"{dead}:8000,{host}" if dead else host,
            "router": run.records[-1].router,
            "listener": "http",
        }
    )
