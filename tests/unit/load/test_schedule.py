from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_replicas.errors import UsageError
from llm_replicas.load.plan import Plan, load_plan
from llm_replicas.load.schedule import (
    SCHEMA,
    Window,
    dues,
    make_schedule,
    phase_windows,
    read_schedule,
    schedule_digest,
    to_bytes,
    write_schedule,
)


def plan(seed: int = 1, **second: Any) -> Plan:
    return load_plan(
        {
            "name": "p",
            "seed": seed,
            "model": "ensemble",
            "workload": {
                "trace": "conv",
                "prompt_divisor": 10,
                "output_divisor": 4,
                "mix": {"generate_stream": 0.85, "grpc_stream": 0.1, "generate": 0.05},
            },
            "phases": [
                {"name": "steady", "rate_per_second": 29, "requests": 2900},
                {"name": "kill", "rate_per_second": 20, "duration_seconds": 10, **second},
                {"name": "trace", "arrivals": "trace", "rate_per_second": 10, "duration_seconds": 20},
            ],
        }
    )


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert to_bytes(make_schedule(plan())) == to_bytes(make_schedule(plan()))


def test_another_seed_gives_another_schedule() -> None:
    assert to_bytes(make_schedule(plan())) != to_bytes(make_schedule(plan(seed=2)))


def test_the_bytes_are_those_of_the_day_this_was_written() -> None:
    digest = schedule_digest(b"".join(str(row).encode() for row in dues(make_schedule(plan()))[::100]))

    assert digest[:16] == "1ec69254f4572b92"


def test_phases_follow_each_other_without_a_gap() -> None:
    assert phase_windows(plan()) == [
        Window("steady", 0, 100),
        Window("kill", 100, 110),
        Window("trace", 110, 130),
    ]


def test_every_request_is_due_inside_its_phase_and_in_order() -> None:
    windows = {window.name: window for window in phase_windows(plan())}
    rows = dues(make_schedule(plan()))

    assert all(windows[row.phase].start_s <= row.due_s < windows[row.phase].end_s for row in rows)
    assert [row.due_s for row in rows] == sorted(row.due_s for row in rows)


def test_changing_one_phase_leaves_the_requests_of_the_others() -> None:
    before = [row for row in dues(make_schedule(plan())) if row.phase == "trace"]
    after = [row for row in dues(make_schedule(plan(rate_per_second=5))) if row.phase == "trace"]

    assert before == after


def test_the_protocols_have_their_shares() -> None:
    rows = dues(make_schedule(plan()))
    names = [row.protocol for row in rows]
    share = {name: names.count(name) / len(rows) for name in set(names)}

    assert share == pytest.approx({"generate_stream": 0.85, "grpc_stream": 0.1, "generate": 0.05}, abs=0.02)


def test_lengths_come_from_the_trace_scaled() -> None:
    rows = [row for row in dues(make_schedule(plan())) if row.phase == "steady"]

    assert np.mean([row.prompt_tokens for row in rows]) == pytest.approx(115, abs=8)
    assert np.mean([row.max_tokens for row in rows]) == pytest.approx(53, abs=3)
    assert min(row.max_tokens for row in rows) >= 1


def test_request_ids_are_unique_hexadecimal_words() -> None:
    ids = [row.request_id for row in dues(make_schedule(plan()))]

    assert len(set(ids)) == len(ids)
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in ids)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_parts_of_all_workers_make_the_whole_schedule(workers: int) -> None:
    table = make_schedule(plan())
    parts = [row for worker in range(workers) for row in dues(table, worker, workers)]

    assert sorted(parts) == sorted(dues(table))


def test_a_stored_schedule_is_read_back(tmp_path: Path) -> None:
    write_schedule(plan(), tmp_path)

    assert read_schedule(tmp_path).equals(make_schedule(plan()))
    assert read_schedule(tmp_path).schema == SCHEMA
    assert [each.name for each in tmp_path.iterdir()] == ["schedule.arrow"]


def test_what_is_no_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_schedule(tmp_path)
    (tmp_path / "schedule.arrow").write_bytes(b"ARROW1 not")
    with pytest.raises(UsageError, match="not a schedule"):
        read_schedule(tmp_path)
