"""A forward pass whose steps end when they end, without PyTorch: what the engine makes of it."""

from __future__ import annotations

import queue
import sys
import threading
from pathlib import Path

import pytest
from standin_engine import forward
from standin_engine.config import ConfigError, EngineConfig
from standin_engine.engine import Engine
from standin_engine.forward import Done
from standin_engine.scheduler import Broken, Emission, Request, Step
from standin_engine.service import Service, token_ids

PATIENCE = 10.0


class ByHand:
    """Ends a step when the test says so."""

    slowdown = 1.0
    vocabulary = 100

    def __init__(self) -> None:
        self.steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self.done: Done = lambda step, problem: None
        self.stopped = False

    def start(self, done: Done) -> None:
        self.done = done

    def stop(self) -> None:
        self.stopped = True

    def run(self, step: Step) -> None:
        self.steps.put(step)

    def end_next(self, problem: str | None = None) -> Step:
        step = self.steps.get(timeout=PATIENCE)
        self.done(step, problem)
        return step


class Client:
    """Collects one answer."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.ended = threading.Event()

    def send(self, text: str, final: bool) -> None:
        if final:
            self.ended.set()

    def fail(self, message: str) -> None:
        self.error = message
        self.ended.set()

    def is_cancelled(self) -> bool:
        return False


def test_no_token_leaves_before_its_step_has_ended() -> None:
    passes = ByHand()
    delivered: queue.SimpleQueue[list[Emission]] = queue.SimpleQueue()
    engine = Engine(EngineConfig(stages=1, stream_interval=1), passes, delivered.put)
    engine.start()
    try:
        engine.submit(Request(1, 3, 3))
        for first in range(3):
            step = passes.steps.get(timeout=PATIENCE)
            assert delivered.empty()
            passes.done(step, None)
            assert delivered.get(timeout=PATIENCE) == [Emission(1, first, 1, first == 2)]
    finally:
        engine.stop()

    assert passes.stopped


def test_requests_are_taken_while_a_step_is_computed() -> None:
    passes = ByHand()
    engine = Engine(EngineConfig(stages=1), passes, lambda _: None)
    engine.start()
    try:
        engine.submit(Request(1, 3, 5))
        engine.submit(Request(2, 3, 5))
        assert engine.load().waiting == 1
        passes.end_next()

        assert passes.end_next().sequences == 2
    finally:
        engine.stop()


def test_a_failed_step_ends_every_answer_and_refuses_new_ones(tmp_path: Path) -> None:
    passes = ByHand()
    config = EngineConfig(control_path=str(tmp_path / "control.json"), cancel_check_seconds=0.05)
    service = Service(config, passes)
    service.start()
    clients = [Client(), Client()]
    try:
        for client in clients:
            service.submit("a b", 5, True, client)
        assert passes.end_next("out of memory").prefills[0][0].request.tokens == token_ids(["a", "b"], 100)
        for client in clients:
            assert client.ended.wait(PATIENCE)
            assert client.error == "the forward pass failed: out of memory"
        with pytest.raises(Broken, match="out of memory"):
            service.submit("a", 1, True, Client())
    finally:
        service.stop()


def test_token_ids_depend_on_the_word_alone() -> None:
    assert token_ids(["b", "a", "b"], 100) == (token_ids(["b"], 100) + token_ids(["a"], 100) + token_ids(["b"], 100))
    assert token_ids(["a"], 0) == ()


def test_without_pytorch_a_real_forward_pass_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(ConfigError, match=r"PyTorch cannot be imported .* or use 'simulated'"):
        forward.create(EngineConfig(forward="torch"))
