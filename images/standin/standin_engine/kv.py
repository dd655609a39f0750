"""Paged key-value cache: a fixed budget of blocks, shared by sequences with the same prompt beginning.

A block's key covers everything before it as well, so equal keys mean equal prefixes. Blocks nobody uses any
more keep their contents until the space is needed, least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field


@dataclass
class Allocation:
    """The blocks of one sequence, in order; the first `shared` of them were found in the cache."""

    blocks: list[int]
    shared: int


@dataclass
class BlockPool:
    """Hands out blocks and counts who uses each."""

    total: int
    tokens_per_block: int
    _users: list[int] = field(init=False, repr=False)
    _key_of: list[int | None] = field(init=False, repr=False)
    _by_key: dict[int, int] = field(init=False, repr=False, default_factory=dict)
    _blank: list[int] = field(init=False, repr=False)
    _idle: OrderedDict[int, None] = field(init=False, repr=False, default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._users = [0] * self.total
        self._key_of = [None] * self.total
        self._blank = list(range(self.total))

    @property
    def free(self) -> int:
        """Blocks that an allocation could take."""
        return len(self._blank) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that some sequence holds."""
        return self.total - self.free

    def blocks_for(self, tokens: int) -> int:
        """How many blocks so many tokens fill."""
        return -(-tokens // self.tokens_per_block)

    def allocate(self, tokens: int, keys: Seq[int]) -> Allocation | None:
        """Reserve room for `tokens`, sharing the longest cached prefix; None if it does not fit."""
        needed = self.blocks_for(tokens)
        shared: list[int] = []
        for key in keys[:needed]:
            block = self._by_key.get(key)
            if block is None:
                break
            shared.append(block)
        resting = sum(1 for block in shared if self._users[block] == 0)
        if needed - len(shared) > self.free - resting:
            return None
        for block in shared:
            self._idle.pop(block, None)
            self._users[block] += 1
        blocks = shared + [self._take() for _ in range(needed - len(shared))]
        return Allocation(blocks, len(shared))

    def publish(self, block: int, key: int) -> None:
        """Say that a held block now has its final contents, so that others may share it."""
        if key not in self._by_key and self._key_of[block] is None:
            self._by_key[key] = block
            self._key_of[block] = key

    def release(self, allocation: Allocation) -> None:
        """Give up one sequence's hold on its blocks."""
        # Last block first: when space is needed the tail of a prefix goes before its head.
        for block in reversed(allocation.blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                if self._key_of[block] is None:
                    self._blank.append(block)
                else:
                    self._idle[block] = None
        allocation.blocks = []

    def _take(self) -> int:
        """A block for new contents, forgetting the oldest unused ones if no blank is left."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            key = self._key_of[block]
            if key is not None:
                del self._by_key[key]
            self._key_of[block] = None
        self._users[block] = 1
        return block
