import time

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_replicas.load.prompts import prompt

_IDS = st.integers(0, 2**128 - 1).map(lambda number: f"{number:032x}")


@settings(max_examples=200, deadline=None)
@given(_IDS, st.integers(0, 2000))
def test_a_prompt_has_the_wanted_words_and_is_always_the_same(request_id: str, words: int) -> None:
    assert len(prompt(request_id, words).split()) == words
    assert prompt(request_id, words) == prompt(request_id, words)


@settings(max_examples=100, deadline=None)
@given(_IDS, _IDS)
def test_two_requests_share_no_prefix(one: str, other: str) -> None:
    if one != other:
        assert prompt(one, 100).split()[0] != prompt(other, 100).split()[0]


def test_a_long_prompt_costs_little() -> None:
    ids = [f"{number:032x}" for number in range(0, 2**32, 2**22)]
    for request_id in ids:
        prompt(request_id, 1400)
    began = time.process_time()
    for request_id in ids:
        prompt(request_id, 1400)

    assert (time.process_time() - began) / len(ids) < 100e-6
