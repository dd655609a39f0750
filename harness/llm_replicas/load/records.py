"""Raw records: one row for every request that was due.

A worker appends its rows to ``segments/<worker>.arrow``, an Arrow IPC stream that is written in whole batches
at least every second, so that a killed process loses at most that second and a file cut at any byte still
gives the batches before the cut. `seal` turns the segments into ``records.parquet`` and removes them only
after that file is safe.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import threading
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_replicas.errors import EnvironmentProblem, LlmReplicasError, UsageError

SCHEMA_VERSION = 1
SEGMENTS = "segments"
SEALED = "records.parquet"
FLUSH_SECONDS = 0.5
FLUSH_ROWS = 500


def _column(name: str, kind: Any, *, optional: bool = False) -> Any:
    return pa.field(name, kind, nullable=optional)


SCHEMA = pa.schema(
    [
        _column("schema_version", pa.int32()),
        _column("request_id", pa.string()),
        _column("worker", pa.string()),
        _column("phase", pa.string()),
        _column("protocol", pa.string()),
        # Seconds after the run's start on the worker's monotonic clock. `sent_s` is the moment the generator
        # turned to the request, before any connecting, so `sent_s - scheduled_s` is the generator's own
        # lateness.
        _column("scheduled_s", pa.float64()),
        _column("sent_s", pa.float64(), optional=True),
        _column("first_byte_s", pa.float64(), optional=True),
        _column("end_s", pa.float64(), optional=True),
        _column("wall_start", pa.float64()),
        _column("connection_id", pa.string(), optional=True),
        _column("connection_reused", pa.bool_(), optional=True),
        _column("prompt_tokens", pa.int32()),
        _column("wanted_tokens", pa.int32()),
        _column("received_tokens", pa.int32()),
        _column("events", pa.int32()),
        _column("gaps_s", pa.list_(pa.float32())),
        _column("finish_reason", pa.string(), optional=True),
        _column("outcome", pa.string()),
        _column("error_class", pa.string(), optional=True),
        _column("error_detail", pa.string(), optional=True),
        _column("status", pa.int32(), optional=True),
        _column("attempts", pa.int32(), optional=True),
        _column("router", pa.string(), optional=True),
        _column("replica", pa.string(), optional=True),
        _column("bytes", pa.int64()),
    ]
)


@dataclass(slots=True)
class Record:
    """One row; the fields are those of `SCHEMA`, in its order."""

    request_id: str
    worker: str
    phase: str
    protocol: str
    scheduled_s: float
    wall_start: float
    prompt_tokens: int
    wanted_tokens: int
    outcome: str
    sent_s: float | None = None
    first_byte_s: float | None = None
    end_s: float | None = None
    connection_id: str | None = None
    connection_reused: bool | None = None
    received_tokens: int = 0
    events: int = 0
    gaps_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error_class: str | None = None
    error_detail: str | None = None
    status: int | None = None
    attempts: int | None = None
    router: str | None = None
    replica: str | None = None
    bytes: int = 0
    schema_version: int = SCHEMA_VERSION


assert {each.name for each in fields(Record)} == set(SCHEMA.names)  # noqa: S101 - a slip here would lose a column


def to_table(records: list[Record]) -> Any:
    """Records as a table of `SCHEMA`."""
    return pa.Table.from_batches([_to_batch(records)], schema=SCHEMA)


def _to_batch(records: list[Record]) -> Any:
    columns = [
        pa.array([getattr(record, column.name) for record in records], type=column.type) for column in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


class _Collector(io.RawIOBase):
    """Takes the many small writes of one batch, so that they reach the file as one."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(self.parts[-1])

    def take(self) -> bytes:
        """Everything written since the last take."""
        data = b"".join(self.parts)
        self.parts.clear()
        return data


class RecordWriter:
    """Appends a worker's records to its segment.

    `add` only puts the record on a list; a background thread (a greenlet under gevent) writes the list out.
    The file stays locked while the writer lives, so nobody seals a run that is still being recorded.
    """

    def __init__(self, run: Path, worker: str) -> None:
        self.path = run / SEGMENTS / f"{worker}.arrow"
        self.written = 0
        self.error: LlmReplicasError | None = None
        self._rows: list[Record] = []
        self._flushing = threading.Lock()
        self._closed = threading.Event()
        self._collector = _Collector()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        except FileExistsError as error:
            raise UsageError(
                f"{self.path} exists: this folder already holds the records of a run; give a new folder"
            ) from error
        except OSError as error:
            raise _disk_trouble(self.path, error) from error
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._stream = pa.ipc.new_stream(pa.PythonFile(self._collector, mode="w"), SCHEMA)
        self._append(self._collector.take())
        self._thread = threading.Thread(target=self._flush_regularly, name="records", daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Keep one record; raises what went wrong with earlier ones."""
        self._rows.append(record)
        if self.error is not None:
            raise self.error
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write out what was added so far."""
        with self._flushing:
            rows = self._rows[:]
            if not rows:
                return
            self._stream.write_batch(_to_batch(rows))
            self._append(self._collector.take())
            del self._rows[: len(rows)]
            self.written += len(rows)

    def close(self) -> None:
        """Write the rest and the end mark; the data is on the disk when this returns."""
        self._closed.set()
        self._thread.join(timeout=5)
        try:
            if self.error is not None:
                raise self.error
            self.flush()
            self._stream.close()
            self._append(self._collector.take())
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def _flush_regularly(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except LlmReplicasError as error:
                self.error = error
                return

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            raise _disk_trouble(self.path, error) from error


def _disk_trouble(path: Path, error: OSError) -> EnvironmentProblem:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            f"{path}: the disk is full; free some space or give another folder (what was written is readable)"
        )
    return EnvironmentProblem(f"{path}: {error.strerror}; give a folder that can be written")


def read_records(run: Path) -> Any:
    """All records of a run folder, sealed or not, as a table of `SCHEMA`."""
    sealed = run / SEALED
    if sealed.exists():
        try:
            return _conform(pq.read_table(sealed), sealed)
        except (pa.ArrowInvalid, OSError) as error:
            raise UsageError(f"{sealed}: not readable as Parquet: {error}") from error
    if not run.is_dir():
        raise UsageError(f"{run}: no such folder; give a folder that a run was made in")
    tables = [read_segment(path) for path in _segments(run)]
    return pa.concat_tables([SCHEMA.empty_table(), *tables])


def read_segment(path: Path) -> Any:
    """The whole batches of one segment; what comes after a cut is left out."""
    batches: list[Any] = []
    # Read into memory, not mapped: a segment may still be growing.
    source = pa.BufferReader(path.read_bytes())
    try:
        stream = pa.ipc.open_stream(source)
    except (pa.ArrowInvalid, OSError, EOFError):
        return SCHEMA.empty_table()  # cut before the end of the very first message
    if stream.schema != SCHEMA:
        raise UsageError(
            f"{path}: not a segment of records: its columns are {', '.join(stream.schema.names)}"
        )
    while True:
        try:
            batches.append(stream.read_next_batch())
        except StopIteration:
            break
        except (pa.ArrowInvalid, OSError, EOFError):
            break  # cut inside a message
    return pa.Table.from_batches(batches, schema=SCHEMA)


def seal(run: Path) -> Path:
    """Turn the segments into one Parquet file. Safe to repeat and to break off at any moment."""
    sealed = run / SEALED
    segments = _segments(run)
    for path in segments:
        _refuse_if_locked(path)
    if not sealed.exists():
        table = read_records(run)
        part = run / f"{SEALED}.{os.getpid()}.part"
        try:
            with part.open("wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            part.replace(sealed)
            _sync_folder(run)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _disk_trouble(sealed, error) from error
    for path in segments:
        path.unlink()
    if segments:
        (run / SEGMENTS).rmdir()
    return sealed


def _segments(run: Path) -> list[Path]:
    return sorted((run / SEGMENTS).glob("*.arrow"))


def _conform(table: Any, path: Path) -> Any:
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise UsageError(
            f"{path}: the columns {', '.join(missing)} are missing; it was not written by this program"
        )
    return table.select(SCHEMA.names).cast(SCHEMA)


def _refuse_if_locked(path: Path, patience: float = 2.0) -> None:
    """A lock that is let go within moments is a process at its end; one that stays is a run under way."""
    deadline = time.monotonic() + patience
    with path.open("rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"{path} is still being written by a load generator; wait for its end or stop it"
                    ) from error
                time.sleep(0.05)  # a lock has no event to wait for with a deadline
            else:
                return


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
