"""Proof that an answer is whole: numbered tokens, none lost, none repeated, as many as were asked for.

The stand-in engine writes token i of a request as the text `` t<i>``. Engines with a real vocabulary cannot
be checked that way; for them the answer's clean end is all there is, and an event counts as one token.
"""

from __future__ import annotations

from typing import Literal

Completeness = Literal["numbered", "clean_end"]
TokenFault = Literal["duplicated", "gap", "excess", "foreign"]


class TokenLedger:
    """Keeps count of one request's tokens and remembers the first thing that was wrong with them."""

    __slots__ = ("_numbered", "_seen", "fault", "fault_detail", "received", "wanted")

    def __init__(self, wanted: int, completeness: Completeness = "numbered") -> None:
        self.wanted = wanted
        self.received = 0
        self.fault: TokenFault | None = None
        self.fault_detail: str | None = None
        self._numbered = completeness == "numbered"
        self._seen = 0

    @property
    def complete(self) -> bool:
        """Whether every wanted token arrived once, in order."""
        if not self._numbered:
            return self.received > 0
        return self.fault is None and self.received == self.wanted

    def take(self, text: str) -> int:
        """Enter the text of one event; returns how many tokens it carried."""
        if not self._numbered:
            self.received += bool(text)
            return int(bool(text))
        words = text.split()
        for word in words:
            self._enter(word)
        return len(words)

    def _enter(self, word: str) -> None:
        digits = word[1:]
        if word[:1] != "t" or not (digits.isascii() and digits.isdigit()):
            self._blame("foreign", f"expected t{self._seen}, got {word[:20]!r}")
            return
        number = int(digits)
        self.received += 1
        if number < self._seen:
            self._blame("duplicated", f"expected t{self._seen}, got t{number} again")
        elif number > self._seen:
            self._blame("gap", f"expected t{self._seen}, got t{number}")
        elif number >= self.wanted:
            self._blame("excess", f"{self.wanted} tokens were wanted, got t{number}")
        self._seen = max(self._seen, number + 1)

    def _blame(self, fault: TokenFault, detail: str) -> None:
        # A repeated token outranks a lost one: it is the rarer and the more telling of the two.
        if self.fault is None or (fault == "duplicated" and self.fault != "duplicated"):
            self.fault = fault
            self.fault_detail = detail
