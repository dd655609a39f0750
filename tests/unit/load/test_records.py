import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_replicas.errors import EnvironmentProblem, UsageError
from llm_replicas.load import records
from llm_replicas.load.records import SCHEMA, Record, RecordWriter, read_records, read_segment, seal


def record(number: int) -> Record:
    return Record(
        request_id=f"{number:032x}",
        worker="worker-0",
        phase="steady",
        protocol="generate_stream",
        scheduled_s=number / 10,
        wall_start=1_700_000_000.0,
        prompt_tokens=10,
        wanted_tokens=3,
        outcome="ok",
        sent_s=number / 10 + 0.001,
        first_byte_s=None if number % 2 else number / 10 + 0.2,
        gaps_s=[0.25, 0.5],
        received_tokens=3,
    )


def ids(table: Any) -> list[int]:
    return [int(each, 16) for each in table.column("request_id").to_pylist()]


def write(run: Path, count: int, batch: int = 3, worker: str = "worker-0") -> Path:
    writer = RecordWriter(run, worker)
    for number in range(count):
        writer.add(record(number))
        if number % batch == batch - 1:
            writer.flush()
    writer.close()
    return writer.path


def test_what_was_written_is_read_back_the_same(tmp_path: Path) -> None:
    write(tmp_path, 7)
    table = read_records(tmp_path)

    assert table.schema == SCHEMA
    assert ids(table) == list(range(7))
    row = table.to_pylist()[1]
    assert (row["first_byte_s"], row["gaps_s"], row["sent_s"], row["status"]) == (
        None,
        [0.25, 0.5],
        0.101,
        None,
    )


def test_a_segment_cut_at_any_byte_gives_the_batches_before_the_cut(tmp_path: Path) -> None:
    path = write(tmp_path, 4, batch=2)
    whole = path.read_bytes()
    table = read_records(tmp_path)
    counts = []
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        found = read_segment(path)
        assert found.equals(table.slice(0, found.num_rows))
        counts.append(found.num_rows)

    assert sorted(counts) == counts
    assert set(counts) == {0, 2, 4}


def test_records_reach_the_file_without_being_asked(tmp_path: Path) -> None:
    assert records.FLUSH_SECONDS < 1, "a killed process may lose one second"
    writer = RecordWriter(tmp_path, "worker-0")
    writer.add(record(0))
    deadline = time.monotonic() + 5.0
    while not read_records(tmp_path).num_rows and time.monotonic() < deadline:
        time.sleep(0.02)

    assert ids(read_records(tmp_path)) == [0]
    writer.close()


def test_a_killed_process_leaves_what_it_flushed(tmp_path: Path) -> None:
    code = (
        "import sys,time;sys.path.insert(0,sys.argv[2]);from pathlib import Path;import test_records as t\n"
        "w=t.RecordWriter(Path(sys.argv[1]),'worker-0')\n"
        "for n in range(100000):\n w.add(t.record(n)); time.sleep(0.005)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)])
    deadline = time.monotonic() + 20
    while not read_records(tmp_path).num_rows and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()

    found = ids(read_records(tmp_path))
    assert found == list(range(len(found)))
    assert found
    assert ids(pq.read_table(seal(tmp_path))) == found


def test_a_cheap_record_costs_the_sender_well_below_50_microseconds(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path, "worker-0")
    rows = [record(number) for number in range(2000)]
    began = time.process_time()
    for row in rows:
        writer.add(row)
    cost = (time.process_time() - began) / len(rows)
    writer.close()

    assert cost < 50e-6, f"{cost * 1e6:.0f} µs a record, flushes included"


def test_sealing_keeps_every_row_and_takes_the_segments_away(tmp_path: Path) -> None:
    write(tmp_path, 5)
    write(tmp_path, 4, worker="worker-1")
    before = read_records(tmp_path)

    sealed = seal(tmp_path)

    assert read_records(tmp_path).equals(before)
    assert sorted(each.name for each in tmp_path.iterdir()) == [sealed.name]
    assert pq.ParquetFile(sealed).metadata.row_group(0).column(0).compression == "ZSTD"


def test_sealing_twice_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, 5)
    before = read_records(tmp_path)
    seal(tmp_path)

    assert read_records(tmp_path).equals(before)
    assert seal(tmp_path) == tmp_path / "records.parquet"


def test_sealing_that_was_broken_off_after_the_rename_is_finished_the_next_time(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    segment = path.read_bytes()
    seal(tmp_path)
    path.parent.mkdir()
    path.write_bytes(segment)

    assert read_records(tmp_path).num_rows == 5
    seal(tmp_path)
    assert not path.exists()
    assert read_records(tmp_path).num_rows == 5


def test_the_segments_stay_while_the_parquet_file_is_not_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 5)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        seal(tmp_path)

    assert path.exists()
    assert [each.name for each in tmp_path.iterdir()] == ["segments"]


def test_a_run_that_is_still_recorded_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records._refuse_if_locked, "__defaults__", (0.1,))
    writer = RecordWriter(tmp_path, "worker-0")
    with pytest.raises(UsageError, match="still being written"):
        seal(tmp_path)
    writer.close()

    seal(tmp_path)


def test_a_folder_with_records_takes_no_second_run(tmp_path: Path) -> None:
    write(tmp_path, 1)

    with pytest.raises(UsageError, match="already holds the records of a run"):
        RecordWriter(tmp_path, "worker-0")


def test_a_full_disk_is_told_and_leaves_the_earlier_records_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RecordWriter(tmp_path, "worker-0")
    writer.add(record(0))
    writer.flush()
    real = os.write

    def almost_full(file: int, data: Any) -> int:
        monkeypatch.setattr(os, "write", full)
        return real(file, bytes(data)[:100])

    def full(file: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", almost_full)
    writer.add(record(1))
    with pytest.raises(EnvironmentProblem, match="the disk is full; free some space"):
        writer.flush()
    monkeypatch.undo()

    assert ids(read_records(tmp_path)) == [0]


def test_a_full_disk_met_in_the_background_is_told_at_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RecordWriter(tmp_path, "worker-0")

    def full(file: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    writer.add(record(0))
    deadline = time.monotonic() + 3
    while writer.error is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(EnvironmentProblem, match="disk is full"):
        writer.add(record(1))


def test_another_arrow_file_is_not_taken_for_a_segment(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    path = tmp_path / "segments" / "x.arrow"
    schema = pa.schema([("a", pa.int32())])
    with pa.ipc.new_stream(str(path), schema):
        pass

    with pytest.raises(UsageError, match="not a segment of records"):
        read_records(tmp_path)


def test_no_folder_is_an_error_and_an_empty_one_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_records(tmp_path / "nowhere")

    assert read_records(tmp_path).num_rows == 0


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = write(tmp_path, 1)

    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
