"""The service on a real clock, fast: streams, refusals, cancellation, faults, shutdown."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from standin_engine import forward
from standin_engine.config import EngineConfig
from standin_engine.control import Control, ControlError, ControlFile, StreamFault, parse
from standin_engine.engine import Load
from standin_engine.scheduler import QueueFull
from standin_engine.service import Service, prefix_keys, text_of

FAST = {"time_scale": 0.05, "cancel_check_seconds": 0.05}
PATIENCE = 10.0


class Client:
    """Collects one answer."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.error: str | None = None
        self.gone = False
        self.broken = False
        self.ended = threading.Event()

    def send(self, text: str, final: bool) -> None:
        if self.broken:
            raise RuntimeError("the connection is broken")
        self.events.append(text)
        if final:
            self.ended.set()

    def fail(self, message: str) -> None:
        self.error = message
        self.ended.set()

    def is_cancelled(self) -> bool:
        return self.gone

    def wait(self) -> Client:
        assert self.ended.wait(PATIENCE), f"no end after {self.events}"
        return self


@contextmanager
def serving(tmp_path: Path, report: Callable[[Load], None] = lambda _: None, **settings: object) -> Iterator[Service]:
    """A running service whose control file lies in the test's folder."""
    config = EngineConfig(**{**FAST, "control_path": str(tmp_path / "control.json"), **settings})  # type: ignore[arg-type]
    service = Service(config, forward.create(config), report)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def submit(service: Service, max_tokens: int, stream: bool = True, prompt: str = "a b c") -> Client:
    """Send one request."""
    client = Client()
    service.submit(prompt, max_tokens, stream, client)
    return client


def test_a_stream_brings_every_token_once_and_in_order(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        clients = [submit(service, 20) for _ in range(30)]
        answers = ["".join(client.wait().events) for client in clients]

    assert answers == [text_of(0, 20)] * 30


def test_without_stream_there_is_one_answer(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        client = submit(service, 7, stream=False).wait()

    assert client.events == [" t0 t1 t2 t3 t4 t5 t6"]


def test_a_full_queue_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with serving(tmp_path, stages=1, max_batch=1, max_waiting=2, time_scale=50.0) as service:
        for _ in range(3):
            submit(service, 5)
        with pytest.raises(QueueFull, match="queue is full"):
            submit(service, 5)

        assert service.load().waiting == 2


def test_a_client_that_goes_away_frees_its_memory_and_its_answer_is_ended(tmp_path: Path) -> None:
    with serving(tmp_path, time_scale=50.0) as service:
        client = submit(service, 200)
        assert service.load().kv_used > 0
        client.gone = True

        until(lambda: service.load().kv_used == 0)
        assert client.wait().error == "the client went away"


def test_a_client_that_cannot_be_sent_to_is_dropped_and_others_go_on(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        broken, fine = Client(), Client()
        broken.broken = True
        service.submit("a", 50, True, broken)
        service.submit("a", 10, True, fine)

        assert "".join(fine.wait().events) == text_of(0, 10)
        until(lambda: service.load().scheduled == 0)


def test_stopping_ends_every_open_answer_with_an_error(tmp_path: Path) -> None:
    with serving(tmp_path, time_scale=50.0) as service:
        client = submit(service, 200)

    assert client.error == "the replica is shutting down"


def test_the_load_is_reported_about_once_a_second(tmp_path: Path) -> None:
    reports: list[Load] = []
    with serving(tmp_path, report=reports.append, time_scale=50.0) as service:
        submit(service, 200)
        until(lambda: bool(reports))

    assert (reports[0].waiting, reports[0].scheduled, reports[0].max_requests) == (0, 1, 200)
    assert reports[0].kv_used + reports[0].kv_free == reports[0].kv_max


@pytest.mark.parametrize(
    ("switch", "expected_events", "expected_error"),
    [("cut_every_n", [" t0"], None), ("error_every_n", [" t0"], "injected error")],
)
def test_faults_hit_every_nth_request_only(
    tmp_path: Path, switch: str, expected_events: list[str], expected_error: str | None
) -> None:
    (tmp_path / "control.json").write_text(json.dumps({switch: 2}))
    with serving(tmp_path) as service:
        first, second = submit(service, 10).wait(), submit(service, 10).wait()

        assert "".join(first.events) == text_of(0, 10)
        assert (second.events, second.error) == (expected_events, expected_error)
        until(lambda: service.load().scheduled == 0)


def test_a_stalled_stream_stays_open_and_silent(tmp_path: Path) -> None:
    (tmp_path / "control.json").write_text('{"stall_every_n": 1}')
    with serving(tmp_path) as service:
        client = submit(service, 10)
        until(lambda: service.load().scheduled == 0)

        assert client.events == [" t0"]
        assert not client.ended.is_set()


def test_a_slowdown_is_noticed_while_running(tmp_path: Path) -> None:
    config = EngineConfig(time_scale=0.05, control_path=str(tmp_path / "control.json"))
    pace = forward.create(config)
    service = Service(config, pace)
    service.start()
    try:
        (tmp_path / "control.json").write_text('{"slowdown": 2}')
        until(lambda: pace.slowdown == 2)
        (tmp_path / "control.json").unlink()
        until(lambda: pace.slowdown == 1)
    finally:
        service.stop()


def test_a_freeze_delays_the_tokens(tmp_path: Path) -> None:
    (tmp_path / "control.json").write_text('{"freeze_seconds": 0.5}')
    with serving(tmp_path) as service:
        started = time.monotonic()
        submit(service, 1).wait()

    assert time.monotonic() - started >= 0.4


def test_a_broken_control_file_is_refused_by_name(tmp_path: Path) -> None:
    for text, complaint in (
        ("{", "not JSON"),
        ("[]", "expected one JSON object"),
        ('{"slow": 2}', "unknown switch 'slow'; accepted: cut_every_n"),
        ('{"slowdown": -1}', "expected a number that is not negative"),
        ('{"slowdown": 0}', "expected a factor above 0"),
        ('{"cut_every_n": 1.5}', "expected a whole number"),
    ):
        with pytest.raises(ControlError, match=complaint):
            parse(text)


def test_the_control_file_is_read_only_when_it_changed(tmp_path: Path) -> None:
    file = ControlFile(tmp_path / "control.json")
    assert file.poll() is None
    file.path.write_text('{"slowdown": 3}')
    assert file.poll() == Control(slowdown=3)
    assert file.poll() is None
    file.path.unlink()

    assert file.poll() == Control()


def test_every_nth_counts_from_one() -> None:
    control = Control(stall_every_n=3)

    assert [control.stream_fault(number) for number in (1, 2, 3)] == [StreamFault.NONE] * 2 + [StreamFault.STALL]


def test_prefix_keys_agree_as_far_as_the_words_do() -> None:
    one = prefix_keys(["a", "b", "c", "d", "e"], 2)
    two = prefix_keys(["a", "b", "c", "x", "e"], 2)

    assert len(one) == 2
    assert one[0] == two[0]
    assert one[1] != two[1]
