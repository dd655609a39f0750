import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_replicas.triton.tokens import TokenLedger


def ledger(wanted: int, *texts: str) -> TokenLedger:
    tokens = TokenLedger(wanted)
    for text in texts:
        tokens.take(text)
    return tokens


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7))
def test_all_tokens_in_order_are_complete_however_they_are_bundled(wanted: int, bundle: int) -> None:
    groups = [range(at, min(at + bundle, wanted)) for at in range(0, wanted, bundle)]
    tokens = ledger(wanted, *("".join(f" t{number}" for number in group) for group in groups))

    assert tokens.complete
    assert tokens.received == wanted


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.data())
def test_any_one_token_left_out_or_repeated_is_seen(wanted: int, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, wanted - 1))
    texts = [f" t{number}" for number in range(wanted)]

    assert not ledger(wanted, *texts[:at], *texts[at + 1 :]).complete
    assert ledger(wanted, *texts[: at + 1], *texts[at:]).fault == "duplicated"


@pytest.mark.parametrize(
    ("texts", "fault"),
    [
        ((" t0 t2",), "gap"),
        ((" t0 t1 t2 t3",), "excess"),
        ((" t0", " t0"), "duplicated"),
        ((" t0 hello",), "foreign"),
        ((" t0 t-1",), "foreign"),
        ((" t0 t²",), "foreign"),
        ((" t0 t2", " t1"), "duplicated"),
    ],
)
def test_what_is_wrong_is_named(texts: tuple[str, ...], fault: str) -> None:
    tokens = ledger(3, *texts)

    assert tokens.fault == fault
    assert not tokens.complete


def test_text_of_a_real_vocabulary_counts_by_events() -> None:
    tokens = TokenLedger(50, "clean_end")

    assert [tokens.take(text) for text in ("Once upon", "", " a time")] == [1, 0, 1]
    assert tokens.complete
