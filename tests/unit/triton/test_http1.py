from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_replicas.triton.http1 import HttpError, ResponseParser

_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Llm-Replica: 10.0.0.7:8000\r\n\r\n"


def feed_cut(parser: ResponseParser, data: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted(cuts), len(data)]
    return b"".join(parser.feed(data[a:b]) for a, b in pairwise(places))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.booleans())
def test_a_chunked_body_is_the_same_however_it_is_cut(
    draw: st.DataObject, chunks: list[bytes], trailer: bool
) -> None:
    wire = _CHUNKED + b"".join(f"{len(chunk):X};x=1\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    wire += b"0\r\n" + (b"x-late: 1\r\n" if trailer else b"") + b"\r\n"
    cuts = draw.draw(st.lists(st.integers(0, len(wire)), max_size=8))
    parser = ResponseParser()

    assert b"".join(chunks) == feed_cut(parser, wire, cuts)
    assert parser.complete
    assert parser.reusable
    assert parser.headers["x-llm-replica"] == "10.0.0.7:8000"


def test_a_chunked_body_cut_anywhere_before_its_last_byte_is_not_complete() -> None:
    wire = _CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"

    for length in range(len(wire)):
        parser = ResponseParser()
        parser.feed(wire[:length])
        assert not parser.eof(), f"{length} of {len(wire)} bytes passed for the whole"


def test_a_body_of_known_length_ends_at_that_length() -> None:
    parser = ResponseParser()

    assert parser.feed(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nfull") == b"full"
    assert (parser.status, parser.complete, parser.reusable) == (503, True, True)


def test_a_short_body_of_known_length_is_not_complete() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfull")

    assert not parser.eof()


def test_a_body_without_framing_ends_with_the_connection_which_is_not_reused() -> None:
    parser = ResponseParser()

    assert parser.feed(b"HTTP/1.0 200 OK\r\n\r\nall") == b"all"
    assert parser.eof()
    assert not parser.reusable


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nConnection: close", b"HTTP/1.0 200 OK"])
def test_a_connection_that_will_close_is_not_reused(head: bytes) -> None:
    parser = ResponseParser()
    parser.feed(head + b"\r\nContent-Length: 0\r\n\r\n")

    assert parser.complete
    assert not parser.reusable


def test_bytes_after_the_end_make_the_connection_unusable() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nstray")

    assert not parser.reusable


def test_interim_responses_are_passed_over() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    assert (parser.status, parser.complete) == (200, True)


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnocolon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n",
        _CHUNKED + b"zz\r\n",
        _CHUNKED + b"-1\r\n",
        _CHUNKED + b"2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
    ],
)
def test_what_is_not_http_is_refused(wire: bytes) -> None:
    with pytest.raises(HttpError):
        ResponseParser().feed(wire)
