"""One process's part of a run: its share of the schedule, its clients, its records, its notes on itself."""

from __future__ import annotations

import datetime as dt
import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gevent
import yaml

from llm_replicas.errors import EnvironmentProblem, InvalidRun, UsageError
from llm_replicas.load.dispatcher import Dispatcher
from llm_replicas.load.plan import Plan, load_plan
from llm_replicas.load.records import Record, RecordWriter
from llm_replicas.load.samples import sample_regularly
from llm_replicas.load.schedule import (
    FILE_NAME,
    dues,
    make_schedule,
    read_schedule,
    schedule_digest,
    to_bytes,
    write_schedule,
)
from loadtests.clients import Clients

STARTED = "started.json"


@dataclass(frozen=True)
class Run:
    """What is to be played: the same for every process of the run."""

    plan: dict[str, Any]
    folder: str
    digest: str
    http_url: str
    grpc_url: str | None


@dataclass(frozen=True)
class Assignment:
    """Which part of the run a process plays, and the moment from which all due times count."""

    run: Run
    index: int
    workers: int
    wall_start: float

    def as_message(self) -> dict[str, Any]:
        """Plain data, fit for Locust's wire."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Assignment:
        """Read what `as_message` made."""
        return cls(**{**message, "run": Run(**message["run"])})


def prepare(plan_file: str, folder: str, http_url: str, grpc_url: str | None) -> Run:
    """Make the run folder complete (plan, schedule), from a plan file or from what the folder holds."""
    stored = Path(folder) / "plan.yaml" if folder else None
    if plan_file:
        plan = load_plan(Path(plan_file))
    elif stored is not None and stored.exists():
        plan = load_plan(stored)
    else:
        raise UsageError(
            "no plan: give --llm-plan FILE (LLM_PLAN), for example loadtests/plans/smoke.yaml, "
            "or --llm-run DIR (LLM_RUN) with a plan.yaml in it"
        )
    if not http_url:
        raise UsageError("no URL: give --host http://HOST:PORT, the address of the router or of one replica")
    Clients(plan, http_url, grpc_url).close()  # a wrong address is told before anything is written
    if stored is not None and stored.exists() and load_plan(stored) != plan:
        raise UsageError(
            f"{stored} is another plan than {plan_file}; give a new folder, or only one of the two"
        )
    path = Path(folder) if folder else _new_folder(plan.name)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "plan.yaml").exists():
            (path / "plan.yaml").write_text(yaml.safe_dump(plan.as_yaml(), sort_keys=False), encoding="utf-8")
        if not (path / FILE_NAME).exists():
            write_schedule(plan, path)
        digest = schedule_digest((path / FILE_NAME).read_bytes())
    except OSError as error:
        raise EnvironmentProblem(
            f"run folder {path}: {error.strerror}; give a writable one with --llm-run"
        ) from error
    return Run(plan.as_yaml(), str(path), digest, http_url, grpc_url)


def _new_folder(name: str) -> Path:
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = Path("runs") / f"{stamp}-{name}"
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{stamp}-{name}-{number}"
        number += 1
    return folder


class Part:
    """Plays an assignment. Made early, so that everything slow is over when the start moment comes."""

    def __init__(
        self, assignment: Assignment, *, on_record: Callable[[Record], None], each_second: Callable[[], None]
    ) -> None:
        run = assignment.run
        self.folder = Path(run.folder)
        self.worker = f"worker-{assignment.index}"
        self._assignment = assignment
        self._on_record = on_record
        self._each_second = each_second
        plan = load_plan(run.plan)
        self._clients = Clients(plan, run.http_url, run.grpc_url)
        table = self._schedule(plan, run)
        self._writer = RecordWriter(self.folder, self.worker)
        wall, monotonic = time.time(), time.monotonic()
        self.dispatcher = Dispatcher(
            plan,
            dues(table, assignment.index, assignment.workers),
            self._clients.senders,
            self._keep,
            worker=self.worker,
            wall_start=assignment.wall_start,
            monotonic_start=monotonic + (assignment.wall_start - wall),
        )
        self._monotonic_start = monotonic + (assignment.wall_start - wall)

    def _schedule(self, plan: Plan, run: Run) -> Any:
        if (self.folder / FILE_NAME).exists():
            table, digest = (
                read_schedule(self.folder),
                schedule_digest((self.folder / FILE_NAME).read_bytes()),
            )
        else:
            # A worker on another machine: it makes the schedule anew and must get the same one.
            table = make_schedule(plan)
            digest = schedule_digest(to_bytes(table))
        if digest != run.digest:
            raise InvalidRun(
                f"{self.worker} has another schedule than the master (sha256 {digest[:12]} instead of "
                f"{run.digest[:12]}); use the same versions of llm-replicas and numpy on both"
            )
        return table

    def _keep(self, record: Record) -> None:
        self._writer.add(record)
        self._on_record(record)

    def play(self) -> None:
        """Send, drain, and leave every record on the disk."""
        sampler = gevent.spawn(
            sample_regularly,
            self.folder,
            self.worker,
            wall_start=self._assignment.wall_start,
            in_flight=lambda: len(self.dispatcher.in_flight),
            due=lambda: self.dispatcher.due_count,
            each_second=self._each_second,
        )
        # What exists now lives as long as the run; the collector need not walk over it again and again.
        gc.collect()
        gc.freeze()
        try:
            self._write_started()
            self.dispatcher.run()
        finally:
            sampler.kill()
            self._writer.close()
            self._clients.close()
        if self.dispatcher.error is not None:
            raise self.dispatcher.error

    def _write_started(self) -> None:
        """Tell the start, once for the run; the file is never half there."""
        data = {
            "wall_start": self._assignment.wall_start,
            "monotonic_start": self._monotonic_start,
            "workers": self._assignment.workers,
            "schedule_digest": self._assignment.run.digest,
        }
        if not (self.folder / STARTED).exists():
            part = self.folder / f"{STARTED}.{self.worker}.part"
            part.write_text(json.dumps(data) + "\n", encoding="utf-8")
            part.replace(self.folder / STARTED)
