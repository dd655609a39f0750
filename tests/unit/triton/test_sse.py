from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_replicas.errors import InvalidRun
from llm_replicas.triton import sse
from llm_replicas.triton.sse import SseEvent, SseParser


def parse(data: bytes, cuts: list[int] | None = None) -> list[SseEvent]:
    parser = SseParser()
    places = [0, *sorted(cuts or []), len(data)]
    return [event for a, b in pairwise(places) for event in parser.feed(data[a:b])]


_LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
_DATA = st.lists(_LINES, min_size=1, max_size=3).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(_DATA, max_size=5), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_survive_every_line_end_and_every_way_of_cutting(
    draw: st.DataObject, wanted: list[str], newline: str
) -> None:
    text = "".join(
        f": keep-alive{newline}"
        + "".join(f"data: {line}{newline}" for line in data.split("\n"))
        + f"retry: 3{newline}unknown{newline}{newline}"
        for data in wanted
    ).encode()
    cuts = draw.draw(st.lists(st.integers(0, len(text)), max_size=8))

    assert wanted == [event.data for event in parse(text, cuts)]


def test_a_crlf_cut_in_its_middle_is_one_line_end() -> None:
    text = b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n"

    for cut in range(len(text)):
        assert [event.data for event in parse(text, [cut])] == ["a\nb", "c"]


def test_a_character_cut_in_its_middle_is_whole_again() -> None:
    text = "data: größe 🦙\n\n".encode()

    for cut in range(len(text)):
        assert [event.data for event in parse(text, [cut])] == ["größe 🦙"]


def test_one_leading_space_is_taken_off_and_no_more() -> None:
    assert [SseEvent(" t1")] == parse(b"data:  t1\n\n")
    assert [SseEvent("t1")] == parse(b"data:t1\n\n")


def test_type_and_id_are_read_and_the_type_ends_with_its_event() -> None:
    events = parse(b"\xef\xbb\xbfevent: error\nid: 7\ndata: x\n\ndata: y\n\n")

    assert [SseEvent("x", "error", "7"), SseEvent("y", "message", "7")] == events


def test_an_event_without_its_blank_line_is_pending_and_not_dispatched() -> None:
    parser = SseParser()

    assert parser.feed(b"data: half\n") == []
    assert parser.pending


def test_a_finished_stream_has_nothing_pending() -> None:
    parser = SseParser()
    parser.feed(b": hello\n\ndata: whole\n\n")

    assert not parser.pending


def test_a_line_without_end_is_refused_instead_of_filling_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 100)

    with pytest.raises(InvalidRun, match="no event stream"):
        SseParser().feed(b"x" * 101)
