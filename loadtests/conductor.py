"""The thread between Locust and a run: who plays which part, when it starts, and how the process ends.

Locust gives the processes, their messages, the user interface and the signals. Arrivals, answers and records
are our own, because Locust's users wait for answers and its statistics round.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import gevent
from gevent.event import Event
from locust import User, events, task
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from llm_replicas.errors import LlmReplicasError
from llm_replicas.load.records import Record
from loadtests.part import Assignment, Part, Run, prepare

EXIT_OK, EXIT_INVALID, EXIT_INTERRUPTED = 0, 4, 130

# From the decision to start until the first due time: everybody must have heard of it and have loaded the
# schedule.
LOCAL_LEAD_SECONDS = 0.5
DISTRIBUTED_LEAD_SECONDS = 2.0

_log = logging.getLogger(__name__)


class RequestFailedError(Exception):
    """A request that did not end well, as Locust's statistics want to be told of it."""


class Conductor:
    """One a process."""

    def __init__(self) -> None:
        self.done = Event()
        self._environment: Any = None
        self._run: Run | None = None
        self._part: Part | None = None
        self._playing: gevent.Greenlet | None = None
        self._exit_code = EXIT_INTERRUPTED
        self._finished: dict[str, int] = {}
        self._parent = os.getppid()

    def on_init(self, environment: Any, runner: Any) -> None:
        """The process is set up but nothing has started: register, and refuse what cannot work."""
        self._environment = environment
        environment.process_exit_code = self._exit_code
        if isinstance(runner, WorkerRunner):
            runner.register_message("llm_assignment", self._on_assignment)
            return
        options = environment.parsed_options
        if isinstance(runner, MasterRunner):
            runner.register_message("llm_finished", self._on_finished)
            options.num_users = options.num_users or options.expect_workers
        if options.headless:
            try:
                self._run = self._prepare()
            except LlmReplicasError as error:
                _log.error("%s", error)
                sys.exit(error.exit_code)

    def on_test_start(self) -> None:
        """Locust starts: play everything here, or hand out the parts."""
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            return  # its part comes by message
        try:
            run, self._run = self._run or self._prepare(), None
        except LlmReplicasError as error:
            self._give_up(error)
            return
        _log.info("run folder %s", run.folder)
        if isinstance(runner, LocalRunner):
            self._start(Assignment(run, 0, 1, time.time() + LOCAL_LEAD_SECONDS))
            return
        clients = sorted(each.id for each in runner.clients.ready)
        wall_start = time.time() + DISTRIBUTED_LEAD_SECONDS
        for index, client in enumerate(clients):
            assignment = Assignment(run, index, len(clients), wall_start)
            runner.send_message("llm_assignment", assignment.as_message(), client_id=client)
        self._finished = {}
        self._playing = gevent.spawn(self._watch_workers, clients)

    def on_stop(self) -> None:
        """Locust stops, by signal or by its user interface: end the part, wait until its records are safe."""
        if self._part is not None:
            self._part.dispatcher.stop()
        if self._playing is not None and self._playing is not gevent.getcurrent():
            if self._part is None:
                self._playing.kill()
            self._playing.join(timeout=10)
        self._environment.process_exit_code = self._exit_code

    def _prepare(self) -> Run:
        options = self._environment.parsed_options
        return prepare(
            options.llm_plan,
            options.llm_run,
            self._environment.host or options.host or "",
            options.llm_grpc_host,
        )

    def _on_assignment(self, environment: Any, msg: Any, **_: Any) -> None:
        self._start(Assignment.from_message(msg.data))

    def _on_finished(self, environment: Any, msg: Any, **_: Any) -> None:
        self._finished[msg.node_id] = int(msg.data["exit_code"])

    def _start(self, assignment: Assignment) -> None:
        self.done.clear()
        self._playing = gevent.spawn(self._play, assignment)

    def _play(self, assignment: Assignment) -> None:
        runner = self._environment.runner
        try:
            self._part = Part(assignment, on_record=self._tell_locust, each_second=self._leave_with_parent)
            self._part.play()
            code = EXIT_INTERRUPTED if self._part.dispatcher.stopped else EXIT_OK
        except LlmReplicasError as error:
            _log.error("%s", error)
            code = error.exit_code
        self._finish(code)
        if isinstance(runner, WorkerRunner):
            runner.send_message("llm_finished", {"exit_code": code})
        else:
            self._quit()

    def _watch_workers(self, clients: list[str]) -> None:
        """Wait until every worker has finished; a worker that goes missing spoils the run."""
        runner = self._environment.runner
        while set(self._finished) < set(clients):
            gone = [
                each
                for each in clients
                if each not in self._finished
                and (each not in runner.clients or runner.clients[each].state == "missing")
            ]
            if gone:
                _log.error("worker %s is gone: the run is invalid", ", ".join(gone))
                self._finish(EXIT_INVALID)
                break
            gevent.sleep(0.2)  # Locust tells of a lost worker by a state, not by an event
        else:
            self._finish(max((self._finished[each] for each in clients), default=EXIT_INVALID))
        self._quit()

    def _finish(self, code: int) -> None:
        self._exit_code = code
        self._environment.process_exit_code = code
        self.done.set()

    def _give_up(self, error: LlmReplicasError) -> None:
        _log.error("%s", error)
        self._finish(error.exit_code)
        gevent.spawn(self._quit)

    def _quit(self) -> None:
        options = self._environment.parsed_options
        if options.headless:
            # Not from this greenlet: quitting waits for it.
            gevent.spawn(self._environment.runner.quit)
        else:
            gevent.spawn(self._environment.runner.stop)

    def _leave_with_parent(self) -> None:
        """A generator that was started by another program must not go on sending when that one is dead."""
        if os.environ.get("LLM_STOP_WITH_PARENT") and os.getppid() != self._parent and self._part is not None:
            _log.error("the program that started this load generator is gone; stopping")
            self._part.dispatcher.stop()

    def _tell_locust(self, record: Record) -> None:
        end = record.end_s if record.end_s is not None else record.sent_s
        taken = (end - record.scheduled_s) * 1000 if end is not None else 0.0
        failed = None
        if record.outcome != "ok":
            failed = RequestFailedError(f"{record.outcome}: {record.error_class}")
        self._environment.events.request.fire(
            request_type=record.protocol,
            name=record.phase,
            response_time=taken,
            response_length=record.bytes,
            exception=failed,
            context={},
        )


conductor = Conductor()


class OpenLoopUser(User):
    """Locust's picture of the dispatcher: there while it plays. Arrivals do not depend on how many of it
    there are.
    """

    @task
    def play(self) -> None:
        """Stay until the part of this process has been played."""
        conductor.done.wait()
        gevent.sleep(1)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: Any) -> None:
    group = parser.add_argument_group("llm-replicas")
    group.add_argument("--llm-plan", env_var="LLM_PLAN", default="", help="plan file (YAML)")
    group.add_argument(
        "--llm-run", env_var="LLM_RUN", default="", help="run folder; without it runs/<time>-<plan> is made"
    )
    group.add_argument(
        "--llm-grpc-host", env_var="LLM_GRPC_HOST", default="", help="HOST:PORT of the gRPC endpoint"
    )


@events.init.add_listener  # type: ignore[untyped-decorator]
def _on_init(environment: Environment, runner: Any, **_: Any) -> None:
    conductor.on_init(environment, runner)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _on_test_start(**_: Any) -> None:
    conductor.on_test_start()


@events.test_stopping.add_listener  # type: ignore[untyped-decorator]
def _on_test_stopping(**_: Any) -> None:
    conductor.on_stop()


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _on_quitting(**_: Any) -> None:
    conductor.on_stop()
