import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from llm_replicas.errors import UsageError
from llm_replicas.triton import http1
from llm_replicas.triton.connections import ConnectionPool
from llm_replicas.triton.exchange import Call, Exchange, Limits
from llm_replicas.triton.generate import GenerateClient
from llm_replicas.triton.http1 import ResponseParser
from llm_replicas.triton.tokens import TokenLedger

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
QUICK = Limits(connect=1.0, first_byte=0.3, stall=0.3, deadline=0.8)


def event(text: str) -> bytes:
    data = f'data: {{"text_output": "{text}"}}\n\n'.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


Answer = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(*answers: Answer) -> Iterator[str]:
    """A server that gives each request the next answer; requests on one connection or on many."""
    listener = socket.create_server(("127.0.0.1", 0))
    left = list(answers)
    sockets: list[socket.socket] = []

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while left:
                request = sock.recv(65536)
                if not request:
                    return
                left.pop(0)(sock)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sockets.append(sock)
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        for sock in sockets:
            sock.close()


def send(*parts: bytes, pause: float = 0.0, close: bool = False) -> Answer:
    def answer(sock: socket.socket) -> None:
        for part in parts:
            sock.sendall(part)
            time.sleep(pause)
        if close:
            sock.shutdown(socket.SHUT_RDWR)

    return answer


def ask(url: str, tokens: int = 2, limits: Limits = QUICK) -> Exchange:
    client = GenerateClient(ConnectionPool(url), limits)
    exchange = Exchange(Call("ab" * 16, "ensemble", "hello", tokens))
    client.stream(exchange)
    client.close()
    return exchange


def test_each_event_is_stamped_when_it_arrives_and_not_when_the_stream_ends() -> None:
    with serving(send(HEAD, event(" t0"), event(" t1"), LAST, pause=0.2)) as url:
        exchange = ask(url, limits=Limits())

    assert exchange.outcome() == ("ok", None)
    assert exchange.sent and exchange.first_byte and exchange.end
    last_event = exchange.first_byte + exchange.gaps[0]
    assert all(0.15 < wait < 0.39 for wait in (exchange.first_byte - exchange.sent, exchange.gaps[0]))
    assert 0.15 < exchange.end - last_event < 0.39


def test_an_event_split_into_single_bytes_is_one_event() -> None:
    data = HEAD + event(" t0") + event(" t1") + LAST
    with serving(send(*(data[at : at + 1] for at in range(len(data))))) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("ok", None)
    assert exchange.events == 2


def test_a_silent_open_stream_is_stalled_at_the_stall_limit() -> None:
    with serving(send(HEAD, event(" t0"))) as url:
        began = time.monotonic()
        exchange = ask(url)

    assert exchange.outcome() == ("stalled", "stall")
    assert 0.28 < time.monotonic() - began < 0.8


def test_no_answer_at_all_is_a_failed_request() -> None:
    with serving(send()) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("failed", "timeout")


def test_a_stream_that_never_ends_is_cut_at_the_deadline() -> None:
    events = [event(f" t{number}") for number in range(20)]
    with serving(send(HEAD, *events, pause=0.1)) as url:
        exchange = ask(url, tokens=1000)

    assert exchange.outcome() == ("cut", "timeout")


def test_a_refused_connection_is_a_failed_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    exchange = ask(f"http://127.0.0.1:{port}")

    assert exchange.outcome() == ("failed", "connect")


@pytest.mark.parametrize("dress", [b"%s", b"data: %s\n\n"])
def test_a_refusal_keeps_the_server_s_words(dress: bytes) -> None:
    body = dress % b'{"error": "queue is full: 1 request waits"}'
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with serving(send(head + body)) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("failed", "http_400")
    assert exchange.detail() == "queue is full: 1 request waits"


def test_something_that_is_not_http_is_a_failed_request() -> None:
    with serving(send(b"SSH-2.0-OpenSSH_9\r\n", close=True)) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("failed", "protocol")


def test_a_clean_end_inside_an_event_is_truncated() -> None:
    half = b'data: {"text_output": " t1"}\n'
    with serving(send(HEAD, event(" t0"), f"{len(half):x}\r\n".encode() + half + b"\r\n", LAST)) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("cut", "truncated")


def test_a_close_without_the_last_chunk_is_a_cut_although_all_tokens_came() -> None:
    with serving(send(HEAD, event(" t0"), event(" t1"), close=True)) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("cut", "closed")


def test_without_the_framing_check_that_cut_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    def believe(parser: ResponseParser) -> bool:
        parser._state = http1._State.DONE
        return True

    monkeypatch.setattr(ResponseParser, "eof", believe)
    with serving(send(HEAD, event(" t0"), event(" t1"), close=True)) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("ok", None)


def test_a_clean_end_with_too_few_tokens_is_a_cut() -> None:
    with serving(send(HEAD, event(" t0"), LAST)) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("cut", "truncated")


def test_without_the_token_count_that_cut_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenLedger, "complete", True)
    with serving(send(HEAD, event(" t0"), LAST)) as url:
        exchange = ask(url)

    assert exchange.outcome() == ("ok", None)


def test_connections_are_reused_after_a_clean_end_and_told_apart() -> None:
    whole = send(HEAD + event(" t0") + event(" t1") + LAST)
    with serving(whole, whole) as url:
        client = GenerateClient(ConnectionPool(url), QUICK)
        exchanges = [Exchange(Call("ab" * 16, "ensemble", "hello", 2)) for _ in range(2)]
        for exchange in exchanges:
            client.stream(exchange)

    assert [each.connection_reused for each in exchanges] == [False, True]
    assert len({each.connection_id for each in exchanges}) == 1


def test_an_idle_connection_that_the_server_closed_is_not_used_again() -> None:
    whole = HEAD + event(" t0") + event(" t1") + LAST
    with serving(send(whole, close=True), send(whole)) as url:
        client = GenerateClient(ConnectionPool(url), QUICK)
        exchanges = [Exchange(Call("ab" * 16, "ensemble", "hello", 2)) for _ in range(2)]
        client.stream(exchanges[0])
        time.sleep(0.05)  # the server's FIN travels
        client.stream(exchanges[1])

    assert [each.outcome()[0] for each in exchanges] == ["ok", "ok"]
    assert [each.connection_reused for each in exchanges] == [False, False]


def test_a_new_connection_for_every_request_when_asked_for() -> None:
    whole = send(HEAD + event(" t0") + event(" t1") + LAST)
    with serving(whole, whole) as url:
        client = GenerateClient(ConnectionPool(url, "new"), QUICK)
        exchanges = [Exchange(Call("ab" * 16, "ensemble", "hello", 2)) for _ in range(2)]
        for exchange in exchanges:
            client.stream(exchange)

    assert len({each.connection_id for each in exchanges}) == 2


def test_a_call_given_up_by_another_thread_ends_at_once_as_unfinished() -> None:
    with serving(send(HEAD, event(" t0"))) as url:
        client = GenerateClient(ConnectionPool(url), Limits())
        exchange = Exchange(Call("ab" * 16, "ensemble", "hello", 2))
        threading.Timer(0.2, exchange.cancel, ["drain_deadline"]).start()
        began = time.monotonic()
        client.stream(exchange)

    assert time.monotonic() - began < 1.0
    assert exchange.outcome() == ("unfinished", "drain_deadline")


def test_the_router_s_words_on_the_way_are_kept() -> None:
    head = HEAD[:-2] + b"x-llm-replica: 10.0.0.7:8000\r\nx-llm-router: r-1\r\nx-llm-attempts: 2\r\n\r\n"
    with serving(send(head + event(" t0") + event(" t1") + LAST)) as url:
        exchange = ask(url)

    assert (exchange.replica, exchange.router, exchange.attempts) == ("10.0.0.7:8000", "r-1", 2)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:notaport"])
def test_a_wrong_url_is_refused_with_what_is_accepted(url: str) -> None:
    with pytest.raises(UsageError, match="http://HOST"):
        ConnectionPool(url)
