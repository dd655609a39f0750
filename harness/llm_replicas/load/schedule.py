"""The schedule: every request of a run with its due time, made once from the plan and stored."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llm_replicas.errors import UsageError
from llm_replicas.load import arrivals
from llm_replicas.load.plan import PROTOCOLS, Phase, Plan
from llm_replicas.load.trace import Trace, load_trace

FILE_NAME = "schedule.arrow"

SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("phase", pa.string(), nullable=False),
        pa.field("due_s", pa.float64(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("max_tokens", pa.int32(), nullable=False),
    ]
)


class Window(NamedTuple):
    """A phase's place in the run, in seconds after its start; the end belongs to the next phase."""

    name: str
    start_s: float
    end_s: float


class Due(NamedTuple):
    """One request of the schedule."""

    request_id: str
    phase: str
    due_s: float
    protocol: str
    prompt_tokens: int
    max_tokens: int


def phase_windows(plan: Plan) -> list[Window]:
    """When each phase starts and ends. Phases follow each other without a gap."""
    windows: list[Window] = []
    start = 0.0
    for phase in plan.phases:
        windows.append(Window(phase.name, start, start + phase.seconds))
        start = windows[-1].end_s
    return windows


def make_schedule(plan: Plan) -> Any:
    """The table of all requests. The same plan gives the same table, to the last bit."""
    trace = load_trace(plan.workload.trace).scaled(plan.workload.prompt_divisor, plan.workload.output_divisor)
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for index, (phase, window) in enumerate(zip(plan.phases, phase_windows(plan), strict=True)):
        # A stream of its own for each phase: changing one phase leaves the requests of the others as they
        # were.
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([plan.seed, index])))
        moments, rows = _draw(rng, phase, trace)
        identities = rng.bytes(16 * len(moments))
        columns["request_id"] += [identities[at : at + 16].hex() for at in range(0, len(identities), 16)]
        columns["phase"] += [phase.name] * len(moments)
        columns["due_s"] += (window.start_s + moments).tolist()
        columns["protocol"] += _protocols(rng, plan, len(moments))
        columns["prompt_tokens"] += trace.prompt_tokens[rows].tolist()
        columns["max_tokens"] += trace.output_tokens[rows].tolist()
    return pa.Table.from_pydict(columns, schema=SCHEMA).combine_chunks()


def _draw(
    rng: np.random.Generator, phase: Phase, trace: Trace
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rate, seconds, requests = phase.rate_per_second, phase.seconds, phase.requests
    if phase.arrivals == "trace":
        return arrivals.from_trace(rng, trace, rate, seconds=seconds, requests=requests)
    if phase.arrivals == "poisson":
        moments = arrivals.poisson(rng, rate, seconds=seconds, requests=requests)
    else:
        moments = arrivals.constant(rate, seconds=seconds, requests=requests)
    # Lengths are drawn independently: neighbours in the trace are often the same user's, and the verdict's
    # arithmetic is sharpest on independent requests. The phase with the trace's own timing keeps them
    # together.
    return moments, (rng.random(len(moments)) * len(trace)).astype(np.int64)


def _protocols(rng: np.random.Generator, plan: Plan, count: int) -> list[str]:
    names = [name for name in PROTOCOLS if plan.workload.mix.get(name, 0.0) > 0]
    bounds = np.cumsum([plan.workload.mix[name] for name in names])
    picks = np.searchsorted(bounds / bounds[-1], rng.random(count), side="right")
    return [names[min(int(pick), len(names) - 1)] for pick in picks]


def to_bytes(table: Any) -> bytes:
    """The schedule as an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def schedule_digest(data: bytes) -> str:
    """What two workers compare to know that they play the same schedule."""
    return hashlib.sha256(data).hexdigest()


def write_schedule(plan: Plan, folder: Path) -> Path:
    """Make the plan's schedule and store it in the run folder."""
    path = folder / FILE_NAME
    part = folder / f"{FILE_NAME}.{os.getpid()}.part"
    part.write_bytes(to_bytes(make_schedule(plan)))
    part.replace(path)
    return path


def read_schedule(folder: Path) -> Any:
    """Read the schedule of a run folder."""
    path = folder / FILE_NAME
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; give a folder that a run was made in") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{path}: not a schedule: {error}") from error
    if table.schema != SCHEMA:
        raise UsageError(
            f"{path}: expected the columns {', '.join(SCHEMA.names)}; got {', '.join(table.schema.names)}"
        )
    return table


def dues(table: Any, worker: int = 0, workers: int = 1) -> list[Due]:
    """The requests of one worker: every W-th of the schedule, in order of their due times."""
    columns = [table.column(name).to_pylist()[worker::workers] for name in SCHEMA.names]
    return [Due(*row) for row in zip(*columns, strict=True)]
