from collections.abc import Callable

import pytest

from llm_replicas.triton.exchange import Call, Exchange, clip


def exchange(*texts: str, clean: bool = True, error: str | None = None, wanted: int = 3) -> Exchange:
    made = Exchange(Call("0" * 32, "ensemble", "q", wanted))
    for number, text in enumerate(texts):
        made.on_event(float(number), text)
    made.clean_end = clean
    if error is not None:
        made.fail(error, "why")
    return made


@pytest.mark.parametrize(
    ("made", "outcome"),
    [
        (lambda: exchange(" t0", " t1 t2"), ("ok", None)),
        (lambda: exchange(" t0", " t1 t2", clean=False), ("cut", "truncated")),
        (lambda: exchange(" t0", " t1"), ("cut", "truncated")),
        (lambda: exchange(" t0", " t2"), ("cut", "gap")),
        (lambda: exchange(" t0", " t1", error="reset"), ("cut", "reset")),
        (lambda: exchange(" t0", error="error_event"), ("cut", "error_event")),
        (lambda: exchange(error="error_event"), ("failed", "error_event")),
        (lambda: exchange(error="http_503"), ("failed", "http_503")),
        (lambda: exchange(clean=True), ("failed", "truncated")),
        (lambda: exchange(" t0", error="stall"), ("stalled", "stall")),
        (lambda: exchange(" t0", " t0 t1 t2"), ("duplicated", "duplicated")),
        (lambda: exchange(" t0 t1 t2 t3"), ("duplicated", "excess")),
        (lambda: exchange(" t0", " t1 t2", error="timeout"), ("cut", "timeout")),
    ],
)
def test_each_way_to_end_has_its_outcome(
    made: Callable[[], Exchange], outcome: tuple[str, str | None]
) -> None:
    assert outcome == made().outcome()


def test_the_first_trouble_is_the_cause() -> None:
    made = exchange(" t0", error="stall")
    made.fail("reset", "the echo of our own closing")

    assert made.outcome() == ("stalled", "stall")


def test_a_call_given_up_from_outside_is_unfinished_whatever_else_it_met() -> None:
    aborted: list[str] = []
    made = exchange(" t0", error="reset")
    made.abort_with(lambda: aborted.append("abort"))

    made.cancel("drain_deadline")
    made.cancel("again")

    assert aborted == ["abort"]
    assert made.outcome() == ("unfinished", "drain_deadline")


def test_a_call_given_up_before_it_could_be_aborted_is_aborted_as_soon_as_it_can() -> None:
    aborted: list[str] = []
    made = exchange()
    made.cancel("drain_deadline")

    made.abort_with(lambda: aborted.append("abort"))

    assert aborted == ["abort"]


def test_a_call_that_has_ended_cannot_be_given_up() -> None:
    made = exchange(" t0", " t1 t2")
    made.finish()

    made.cancel("drain_deadline")

    assert made.outcome() == ("ok", None)


def test_gaps_lie_between_events_that_carry_tokens() -> None:
    made = Exchange(Call("0" * 32, "ensemble", "q", 2))
    for moment, text in ((1.0, " t0"), (1.2, ""), (1.5, " t1")):
        made.on_event(moment, text)

    assert (made.first_byte, made.events, made.gaps) == (1.0, 2, [0.5])


def test_details_are_one_short_printable_line() -> None:
    assert clip("a\n\tb\x1b[31m " + "c" * 400).startswith("a b?[31m cc")
    assert len(clip("c" * 400)) == 300
