"""The router's drain hook, run by bash against a stand-in for Envoy's admin port."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chart.chart_places import CHART

HOOK = CHART / "files" / "drain.sh"


class Admin:
    """Answers as Envoy's admin port does; `usage` tells active requests, all requests and connections."""

    def __init__(self, usage: Callable[[float], tuple[int, int, int]]) -> None:
        self.asked: list[str] = []
        started = time.monotonic()
        admin = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Keep quiet."""

            def do_POST(self) -> None:
                admin.asked.append(f"POST {self.path}")
                self._answer("OK\n")

            def do_GET(self) -> None:
                active, total, connections = usage(time.monotonic() - started)
                rows = {
                    "downstream_rq_active": active,
                    "downstream_rq_total": total,
                    "downstream_cx_active": connections,
                }
                stat = self.path.rpartition(".")[2]
                self._answer(f"http.edge_http.{stat}: {rows[stat]}\nhttp.edge_grpc.{stat}: 0\n")

            def _answer(self, text: str) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])


@pytest.fixture
def admin() -> Iterator[Callable[..., Admin]]:
    made: list[Admin] = []

    def make(usage: Callable[[float], tuple[int, int, int]]) -> Admin:
        made.append(Admin(usage))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()


def run(port: int, withdrawal: int, drain: int) -> float:
    started = time.monotonic()
    ran = subprocess.run(
        ["bash", str(HOOK), str(withdrawal), str(drain)],
        env={"PATH": "/usr/bin:/bin", "ADMIN_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return time.monotonic() - started


def test_listeners_drain_gracefully_and_stay_open(admin: Callable[..., Admin]) -> None:
    envoy = admin(lambda _: (0, 5, 0))

    run(envoy.port, 0, 10)

    assert envoy.asked == ["POST /drain_listeners?graceful&skip_exit"]


def test_serves_on_before_it_drains(admin: Callable[..., Admin]) -> None:
    envoy = admin(lambda _: (0, 5, 0))

    assert run(envoy.port, 2, 10) >= 2


def test_leaves_as_soon_as_no_connection_is_left(admin: Callable[..., Admin]) -> None:
    envoy = admin(lambda elapsed: (3, 5, 3) if elapsed < 2 else (0, 5, 0))

    took = run(envoy.port, 0, 30)

    assert 2 <= took < 4


def test_waits_for_requests_in_flight(admin: Callable[..., Admin]) -> None:
    envoy = admin(lambda elapsed: (1, 5, 1) if elapsed < 4 else (0, 5, 1))

    assert run(envoy.port, 0, 30) >= 4


def test_leaves_idle_connections_behind_after_a_quiet_while(admin: Callable[..., Admin]) -> None:
    envoy = admin(lambda _: (0, 5, 2))

    took = run(envoy.port, 0, 30)

    assert 3 <= took < 6


def test_new_requests_on_old_connections_prolong_the_wait(admin: Callable[..., Admin]) -> None:
    envoy = admin(lambda elapsed: (0, 5 + int(min(elapsed, 4)), 2))

    assert run(envoy.port, 0, 30) >= 6


def test_the_budget_ends_the_wait(admin: Callable[..., Admin]) -> None:
    envoy = admin(lambda _: (1, 5, 1))

    took = run(envoy.port, 0, 3)

    assert 3 <= took < 6


def test_a_dead_envoy_is_not_waited_for(admin: Callable[..., Admin]) -> None:
    envoy = admin(lambda _: (1, 5, 1))
    envoy.server.shutdown()
    envoy.server.server_close()

    assert run(envoy.port, 0, 30) < 3
