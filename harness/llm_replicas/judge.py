"""Judges a run folder from what lies in it: read, decide, write the verdict and the reports.

Whatever is missing or broken in the folder becomes a reason in the verdict: no pass, and no traceback.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from llm_replicas import __version__
from llm_replicas.errors import LlmReplicasError, UsageError
from llm_replicas.load import selfcheck
from llm_replicas.load.plan import Plan, load_plan
from llm_replicas.load.records import SCHEMA, read_records
from llm_replicas.load.samples import read_samples
from llm_replicas.load.schedule import FILE_NAME as SCHEDULE
from llm_replicas.load.schedule import read_schedule
from llm_replicas.report.html import write_html
from llm_replicas.report.junit import write_junit
from llm_replicas.report.verdict_json import read_verdict, write_verdict
from llm_replicas.slo import verdict as verdicts
from llm_replicas.slo.facts import Drain, FaultEvent, Phase, RouterRequest, RunFacts, SelfCheck
from llm_replicas.slo.model import Slo, digest, load_slo, looser_than
from llm_replicas.slo.samples import Labels, Samples, from_columns
from llm_replicas.slo.verdict import Verdict
from llm_replicas.telemetry.journal import read_journal

LOG_COVERAGE = 0.9
"""A router log that holds fewer of the requests than this is not relied upon."""

NO_SLO = Slo()
"""Promises nothing; stands in where the run has no table."""


@dataclass
class Reading:
    """What is read from a folder, and what was wrong with it."""

    problems: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    origin_wall: float = 0.0
    slo_source: str = "missing"


def judge(
    run: Path, *, slo: Path | None = None, baseline: Path | None = None, acknowledge_looser: bool = False
) -> Verdict:
    """Judge a run folder and write `verdict.json`, `junit.xml` and `report.html` into it.

    `slo` replaces the run's own table. A table looser than `baseline` is a fail unless it is acknowledged.
    """
    reference = None if acknowledge_looser else baseline or _stored_baseline(run)
    verdict, facts = decide(run, slo=slo, baseline=reference)
    write_verdict(run / "verdict.json", verdict)
    _write_reports(run, verdict, facts)
    return verdict


def decide(
    run: Path, *, slo: Path | None = None, baseline: Path | Mapping[str, Any] | None = None
) -> tuple[Verdict, RunFacts]:
    """The verdict and what it rests on, without writing anything."""
    facts, reading = read_run(run, slo)
    if baseline is not None:
        facts = replace(facts, loosened=tuple(looser_than(facts.slo, load_slo(baseline))))
    return replace(verdicts.judge(facts, reading.origin_wall), provenance=reading.provenance), facts


def write_reports(run: Path) -> Path:
    """Write the reports of a judged run anew, from its verdict and its records; returns the HTML file."""
    facts, _ = read_run(run)
    return _write_reports(run, read_verdict(run / "verdict.json"), facts)


def read_run(run: Path, slo: Path | None = None) -> tuple[RunFacts, Reading]:
    """Everything that a verdict needs, from the folder alone."""
    if not run.is_dir():
        raise UsageError(f"run folder {run} is not there; accepted: a folder that gate or load made")
    reading = Reading()
    table = _slo(run, slo, reading)
    plan = _plan(run, reading)
    started = _json(run / "started.json", dict, reading, needed=False) or {}
    environment = _json(run / "environment.json", dict, reading, needed=False) or {}
    records = _records(run, reading)
    reading.origin_wall = _origin(started, records)
    rows = _router_rows(run)
    samples = _samples(records, rows, reading.origin_wall)
    scheduled, missing, unscheduled = _compare_with_schedule(run, records, reading)
    faults = _json(run / "faults.json", list, reading, needed=False)
    withdrawal = environment.get("endpoint_withdrawal_seconds")
    facts = RunFacts(
        slo=table,
        samples=samples,
        phases=None if plan is None else tuple(_phases(plan)),
        faults=tuple(_faults(faults or [], reading)),
        faults_recorded=faults is not None,
        router_log=_router_log(rows, records, reading.origin_wall),
        self_check=_self_check(run, samples, started, reading),
        scheduled=scheduled,
        missing=missing,
        unscheduled=unscheduled,
        repeated=records.num_rows - len(set(records.column("request_id").to_pylist())),
        endpoint_withdrawal_s=float(withdrawal) if isinstance(withdrawal, int | float) else None,
        pod_names=tuple(_pod_names(run, faults or []).items()),
        problems=tuple(reading.problems),
    )
    reading.provenance = _provenance(run, reading, plan, table, environment)
    return facts, reading


def _stored_baseline(run: Path) -> Mapping[str, Any] | None:
    """The baseline that the run was held to, unless its author acknowledged to go below it."""
    try:
        stored = yaml.safe_load((run / "slo.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None  # a table that cannot be read is a reason of its own
    if not isinstance(stored, dict) or stored.get("looser_acknowledged"):
        return None
    found = stored.get("baseline")
    return found if isinstance(found, dict) else None


def _write_reports(run: Path, verdict: Verdict, facts: RunFacts) -> Path:
    write_junit(run / "junit.xml", verdict)
    return write_html(run / "report.html", verdict, facts)


def _slo(run: Path, given: Path | None, reading: Reading) -> Slo:
    if given is not None:
        reading.slo_source = str(given)
        return load_slo(given)
    path = run / "slo.yaml"
    if not path.is_file():
        reading.problems.append("slo.yaml is not in the run folder: nothing was promised; give --slo FILE")
        return NO_SLO
    try:
        table = load_slo(path)
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except LlmReplicasError as error:
        reading.problems.append(f"the run's own table cannot be used; give --slo FILE: {error}")
        reading.slo_source = "unreadable"
        return NO_SLO
    if stored.get("digest") not in {None, digest(table)}:
        reading.problems.append(
            f"slo.yaml was changed after the run: its digest is {digest(table)}, and it says {stored['digest']}"
        )
    reading.slo_source = str(stored.get("source", "slo.yaml"))
    return table


def _plan(run: Path, reading: Reading) -> Plan | None:
    try:
        return load_plan(run / "plan.yaml")
    except LlmReplicasError as error:
        reading.problems.append(f"which phases are judged is not known: {error}")
        return None


def _phases(plan: Plan) -> Iterable[Phase]:
    for phase in plan.phases:
        yield Phase(phase.name, phase.judged, phase.fault.kind if phase.fault else None)


def _records(run: Path, reading: Reading) -> Any:  # pyarrow publishes no types
    try:
        return read_records(run)
    except (LlmReplicasError, pa.ArrowException, OSError) as error:
        reading.problems.append(f"the records cannot be read: {error}")
        return SCHEMA.empty_table()


def _origin(started: Mapping[str, Any], records: Any) -> float:
    wall = started.get("wall_start")
    if isinstance(wall, int | float):
        return float(wall)
    return float(pc.min(records.column("wall_start")).as_py() or 0.0)


def _samples(records: Any, rows: Mapping[str, Mapping[str, Any]], origin_wall: float) -> Samples:
    ids = records.column("request_id").to_pylist()
    columns: dict[str, Any] = {
        name: records.column(name).to_numpy()
        for name in (
            "scheduled_s",
            "sent_s",
            "first_byte_s",
            "end_s",
            "wall_start",
            "received_tokens",
            "events",
        )
    }
    columns |= {
        name: _labels(records.column(name)) for name in ("worker", "phase", "protocol", "outcome", "error_class")
    }
    # A request that failed before its answer began carries no header that names the pod; the router knows it.
    for name, told in (("replica", _last_host), ("router", _router)):
        values = records.column(name)
        if rows and values.null_count:
            filled = [
                value if value is not None else told(rows.get(request, {}))
                for request, value in zip(ids, values.to_pylist(), strict=True)
            ]
            columns[name] = Labels.of(filled)
        else:
            columns[name] = _labels(values)
    columns["request_id"] = ids
    columns["origin_wall"] = origin_wall
    columns["gap"] = _largest(records.column("gaps_s"))
    columns["connection_reused"] = records.column("connection_reused").to_pylist()
    return from_columns(columns)


def _labels(column: Any) -> Labels:
    coded = pc.dictionary_encode(column).combine_chunks()
    if isinstance(coded, pa.ChunkedArray):  # what an empty column becomes
        return Labels(np.zeros(0, dtype=np.int32), ())
    codes = pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Labels(codes, tuple(coded.dictionary.to_pylist()))


def _largest(column: Any) -> npt.NDArray[np.float64]:
    """The largest number of each list, NaN for an empty one."""
    found = np.full(len(column), np.nan)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    values = pc.list_flatten(column).to_numpy().astype(np.float64)
    filled = lengths > 0
    if filled.any():
        starts = (np.cumsum(lengths) - lengths)[filled]
        found[filled] = np.maximum.reduceat(values, starts)
    return found


def _compare_with_schedule(run: Path, records: Any, reading: Reading) -> tuple[int | None, tuple[str, ...], int]:
    try:
        wanted = set(read_schedule(run).column("request_id").to_pylist())
    except LlmReplicasError as error:
        reading.problems.append(f"what should have been sent is not known: {error}")
        return None, (), 0
    found = set(records.column("request_id").to_pylist())
    return len(wanted), tuple(sorted(wanted - found)), len(found - wanted)


def _self_check(run: Path, samples: Samples, started: Mapping[str, Any], reading: Reading) -> SelfCheck:
    try:
        seconds = [each for one in read_samples(run).values() for each in one]
    except LlmReplicasError as error:
        reading.problems.append(f"the generator's samples of itself cannot be read: {error}")
        seconds = []
    late = samples.lateness
    workers = started.get("workers")
    check = selfcheck.check(
        # Records that are missing are counted by name elsewhere; here it is about those that are there.
        scheduled=len(samples),
        lateness_s=late[~np.isnan(late)].tolist(),
        recorded=len(samples),
        samples=seconds,
        workers_missing=max(0, (workers if isinstance(workers, int) else 1) - len(samples.worker.used())),
    )
    busy = [each.host_busy_share for each in seconds if each.host_busy_share is not None]
    return SelfCheck(
        reasons=tuple(check.reasons),
        late_p50_ms=_thousandfold(check.late_p50_s),
        late_p99_ms=_thousandfold(check.late_p99_s),
        late_max_ms=_thousandfold(check.late_max_s),
        hub_lag_p99_ms=_thousandfold(check.hub_lag_p99_s),
        cpu_p95_share=check.process_cpu_p95_share,
        host_busy_share=sum(busy) / len(busy) if busy else None,
        host_pressure_share=check.host_pressure_share,
        host_steal_share=check.host_steal_share,
        host_starved_share=check.host_starved_share,
    )


def _faults(rows: list[Any], reading: Reading) -> Iterable[FaultEvent]:
    def moment(value: Any) -> float | None:
        return float(value) - reading.origin_wall if isinstance(value, int | float) else None

    for row in rows:
        if not isinstance(row, dict) or not {"kind", "phase"} <= row.keys():
            reading.problems.append(f"faults.json: an entry without kind and phase: {str(row)[:80]}")
            continue
        target, seen = row.get("target") or {}, row.get("observations") or {}
        t0 = moment(row.get("t0_wall"))
        drains = [
            Drain(
                name,
                pod.get("ip"),
                moment(pod.get("deleted_wall")),
                moment(pod.get("sigterm_wall")),
                moment(pod.get("gone_wall")),
            )
            for name, pod in (seen.get("pods") or {}).items()
        ]
        if row["kind"] == "podDelete":
            ends = moment(seen.get("sigterm_wall")), moment(seen.get("gone_wall"))
            drains = [Drain(target.get("pod", "?"), target.get("ip"), t0, *ends)]
        yield FaultEvent(
            kind=row["kind"],
            phase=row["phase"],
            requested_s=moment(row.get("requested_wall")),
            t0_s=t0,
            healed_s=moment(row.get("healed_wall")),
            ready_s=moment(seen.get("ready_wall")),
            pod=target.get("pod") or target.get("deployment"),
            ip=target.get("ip"),
            drains=tuple(drains),
            in_flight_at_sigterm=row.get("in_flight_at_sigterm"),
            error=row.get("error"),
        )


def _pod_names(run: Path, faults: list[Any]) -> dict[str, str]:
    names: dict[str, str] = {}
    for row in read_journal(run / "cluster.jsonl"):
        if row.get("kind") == "pod" and row.get("ip"):
            names[str(row["ip"])] = str(row.get("name"))
    for row in faults:
        target = (row.get("target") or {}) if isinstance(row, dict) else {}
        if target.get("ip"):
            names.setdefault(target["ip"], str(target.get("pod")))
        for name, ip in (target.get("pods") or {}).items():
            names.setdefault(str(ip), name)
    return names


def _router_rows(run: Path) -> dict[str, dict[str, Any]]:
    """The router's log by request id, in the spelling of the records."""
    rows: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_journal(run / "router-access.jsonl")):
        rows[str(row.get("request_id") or number).replace("-", "")] = row
    return rows


def _router_log(
    rows: Mapping[str, Mapping[str, Any]], records: Any, origin_wall: float
) -> tuple[RouterRequest, ...] | None:
    ids = records.column("request_id").to_pylist()
    if not ids or sum(name in rows for name in ids) < LOG_COVERAGE * len(ids):
        return None
    return tuple(
        RouterRequest(
            start_s=start - origin_wall,
            request_id=name,
            upstream=_host(row.get("upstream")),
            attempted=_attempted(row),
            lost=_given_up(row),
        )
        for name, row in rows.items()
        if (start := _epoch(row.get("time"))) is not None
    )


def _attempted(row: Mapping[str, Any]) -> tuple[str, ...]:
    told = row.get("hosts_attempted")
    hosts = told if isinstance(told, list) else str(told or "").split(",")
    found = [host for each in hosts if (host := _host(each)) is not None]
    upstream = _host(row.get("upstream"))
    return tuple(found if upstream is None or upstream in found else [*found, upstream])


def _host(value: object) -> str | None:
    text = str(value or "").strip()
    return None if text in {"", "-"} else text


def _last_host(row: Mapping[str, Any]) -> str | None:
    hosts = _attempted(row)
    return _host(row.get("upstream")) or (hosts[-1] if hosts else None)


def _router(row: Mapping[str, Any]) -> str | None:
    return _host(row.get("router")) or _host(row.get("pod"))


def _given_up(row: Mapping[str, Any]) -> bool:
    # DC: it was the client that went away.
    flags = set(str(row.get("flags") or "-").split(",")) - {"-", "DC", ""}
    status = row.get("status")
    return bool(flags) or (isinstance(status, int) and (status == 0 or status >= 500))


def _epoch(text: object) -> float | None:
    try:
        moment = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()


def _json(path: Path, kind: type, reading: Reading, *, needed: bool) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            reading.problems.append(f"{path.name} is not in the run folder")
        return None
    except (OSError, ValueError) as error:
        reading.problems.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(found, kind):
        reading.problems.append(f"{path.name} holds {type(found).__name__} where {kind.__name__} was expected")
        return None
    return found


def _provenance(
    run: Path, reading: Reading, plan: Plan | None, table: Slo, environment: dict[str, Any]
) -> dict[str, Any]:
    schedule = run / SCHEDULE
    found: dict[str, Any] = {
        "run": run.resolve().name,
        "started": dt.datetime.fromtimestamp(reading.origin_wall, dt.UTC).isoformat(timespec="seconds")
        if reading.origin_wall
        else None,
        "judged_by": f"llm-replicas {__version__}",
        "slo_source": reading.slo_source,
        "slo": table.as_yaml(),
        "slo_digest": digest(table),
        "schedule_digest": f"sha256:{hashlib.sha256(schedule.read_bytes()).hexdigest()}"
        if schedule.is_file()
        else None,
        "stand_in": bool(environment.get("stand_in")),
        "environment": environment,
    }
    if plan is not None:
        found |= {
            "plan": plan.name,
            "seed": plan.seed,
            "model": plan.model,
            "workload": plan.as_yaml()["workload"],
        }
    return found


def _thousandfold(value: float | None) -> float | None:
    return None if value is None else value * 1000
