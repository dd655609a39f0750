"""Prompt text of a wanted length, made from the request's id.

A prompt begins with words that only it has, so no two share a prefix and a prefix cache gains nothing by
accident. The rest comes out of ready-made blocks, because making thousands of words anew would cost the
generator its punctuality.
"""

from __future__ import annotations

from functools import cache

_BLOCK_WORDS = 64
_BLOCKS = 251
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu", "ze")


def prompt(request_id: str, words: int) -> str:
    """A text of exactly ``words`` words, always the same one for the same id."""
    if words <= 0:
        return ""
    parts = [f"q{request_id}"]
    left = words - 1
    at = int(request_id[:8], 16)
    while left >= _BLOCK_WORDS:
        parts.append(_block(at % _BLOCKS))
        left -= _BLOCK_WORDS
        at = at * 31 + 7
    if left:
        parts.append(_opening(at % _BLOCKS, left))
    return " ".join(parts)


@cache
def _block(number: int) -> str:
    return " ".join(_words(number))


@cache
def _opening(number: int, words: int) -> str:
    return " ".join(_words(number)[:words])


@cache
def _words(number: int) -> list[str]:
    state = number + 1
    words: list[str] = []
    for _ in range(_BLOCK_WORDS):
        state = (state * 1103515245 + 12345) % 2**31
        words.append("".join(_SYLLABLES[(state >> shift) % len(_SYLLABLES)] for shift in (8, 13, 18)))
    return words
