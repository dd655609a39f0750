"""Decides what each step of each lane computes. Pure: no clock, no threads, no input or output.

Rules, in the order in which they bind:
- Requests wait in one queue of bounded length and are admitted strictly first come, first served: when the
  head does not fit, nobody behind it is tried.
- Admission reserves the blocks for prompt and answer, so a running sequence is never evicted
  (TensorRT-LLM calls this policy GUARANTEED_NO_EVICT).
- A step advances every decoding sequence of its lane by one token and computes up to `chunk_tokens` prompt
  tokens, oldest sequence first; a longer prompt takes several steps.
- The first token leaves at once, later ones in groups of `stream_interval`, the rest with the last.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from standin_engine.config import EngineConfig
from standin_engine.kv import Allocation, BlockPool


class Rejected(Exception):  # noqa: N818 - it reads as what happened to the request
    """The request was not accepted; the message is for the client."""


class QueueFull(Rejected):
    """Too many requests are waiting already; another replica, or a later try, may take it."""


class Broken(Rejected):
    """The forward pass failed, so this replica computes nothing any more."""


class TooLong(Rejected):
    """The request can never fit."""


@dataclass(frozen=True)
class Request:
    """What the scheduler needs to know; `prefix_keys` has one key for each full block of the prompt.

    `tokens` are the prompt's token ids, for a forward pass that has a vocabulary; the scheduler ignores them.
    """

    request_id: int
    prompt_tokens: int
    max_tokens: int
    prefix_keys: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(eq=False)
class Sequence:
    """An admitted request and how far it is; `token` is what the model chose last, if there is a model."""

    request: Request
    lane: int
    allocation: Allocation
    computed: int
    produced: int = 0
    emitted: int = 0
    token: int = 0
    cancelled: bool = False

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that still have to be computed."""
        return self.request.prompt_tokens - self.computed


@dataclass(frozen=True)
class Emission:
    """Tokens `first` to `first + count - 1` of a request, ready to be sent."""

    request_id: int
    first: int
    count: int
    final: bool


@dataclass(frozen=True)
class Step:
    """One pass of one lane: who decodes, and which prompt parts are computed."""

    lane: int
    decodes: tuple[Sequence, ...]
    prefills: tuple[tuple[Sequence, int], ...]

    @property
    def sequences(self) -> int:
        """Sequences that take part."""
        return len(self.decodes) + len(self.prefills)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that are computed."""
        return sum(tokens for _, tokens in self.prefills)


@dataclass
class Scheduler:
    """The waiting queue, the lanes and the block budget."""

    config: EngineConfig
    pool: BlockPool = field(init=False)
    waiting: deque[Request] = field(init=False, default_factory=deque)
    lanes: list[list[Sequence]] = field(init=False)
    active: dict[int, Sequence] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = BlockPool(self.config.kv_blocks, self.config.tokens_per_block)
        self.lanes = [[] for _ in range(self.config.stages)]

    def submit(self, request: Request) -> None:
        """Queue a request, or say why not."""
        if request.prompt_tokens < 1 or request.max_tokens < 1:
            raise TooLong(
                f"prompt has {request.prompt_tokens} tokens and max_tokens is {request.max_tokens}; "
                "both must be at least 1"
            )
        needed = self.pool.blocks_for(request.prompt_tokens + request.max_tokens)
        if needed > self.pool.total:
            raise TooLong(
                f"request is too long: prompt and answer need {needed} blocks of KV cache, "
                f"this replica has {self.pool.total}"
            )
        if len(self.waiting) >= self.config.max_waiting:
            raise QueueFull(
                f"queue is full: {len(self.waiting)} requests are waiting, the limit is {self.config.max_waiting}"
            )
        self.waiting.append(request)

    def begin_step(self, lane: int) -> Step | None:
        """Admit what fits into this lane and plan its next step; None when the lane has nothing to do."""
        members = self.lanes[lane]
        budget = self.config.chunk_tokens
        prefills: list[tuple[Sequence, int]] = []
        decodes: list[Sequence] = []
        for sequence in members:
            left = sequence.prompt_left
            if left == 0:
                decodes.append(sequence)
            elif budget > 0:
                chunk = min(left, budget)
                budget -= chunk
                prefills.append((sequence, chunk))
        # A lane that has its prompt budget spent, or its share of the sequences, leaves new arrivals to the
        # next lane: that one starts sooner than this one could finish them.
        slots = min(self.config.lane_slots, self._fair_share())
        while budget > 0 and self.waiting and len(members) < slots:
            admitted = self._admit(lane)
            if admitted is None:
                break
            chunk = min(admitted.prompt_left, budget)
            budget -= chunk
            prefills.append((admitted, chunk))
        if not decodes and not prefills:
            return None
        return Step(lane, tuple(decodes), tuple(prefills))

    def finish_step(self, step: Step) -> list[Emission]:
        """Book the results of a step and return what is ready to be sent."""
        emissions: list[Emission] = []
        for sequence, tokens in step.prefills:
            if sequence.cancelled:
                continue
            self._publish(sequence, sequence.computed + tokens)
            sequence.computed += tokens
            if sequence.prompt_left == 0:
                self._produce(sequence, emissions)
        for sequence in step.decodes:
            if not sequence.cancelled:
                self._produce(sequence, emissions)
        return emissions

    def cancel(self, request_id: int) -> bool:
        """Forget a request and free what it holds at once; False if it is not known (any more)."""
        sequence = self.active.get(request_id)
        if sequence is not None:
            sequence.cancelled = True
            self._leave(sequence)
            return True
        for request in self.waiting:
            if request.request_id == request_id:
                self.waiting.remove(request)
                return True
        return False

    def _fair_share(self) -> int:
        """Sequences per lane if all that are here were spread evenly, rounded up."""
        return -(-(len(self.active) + len(self.waiting)) // self.config.stages)

    def _admit(self, lane: int) -> Sequence | None:
        """Move the head of the queue into a lane if its blocks are there."""
        request = self.waiting[0]
        keys: tuple[int, ...] = ()
        if self.config.prefix_cache:
            # At least one prompt token is computed anew: it makes the first answer token.
            keys = request.prefix_keys[: (request.prompt_tokens - 1) // self.config.tokens_per_block]
        allocation = self.pool.allocate(request.prompt_tokens + request.max_tokens, keys)
        if allocation is None:
            return None
        self.waiting.popleft()
        sequence = Sequence(request, lane, allocation, computed=allocation.shared * self.config.tokens_per_block)
        self.lanes[lane].append(sequence)
        self.active[request.request_id] = sequence
        return sequence

    def _publish(self, sequence: Sequence, computed: int) -> None:
        """Offer the prompt blocks that are complete now to later requests."""
        if not self.config.prefix_cache:
            return
        size = self.config.tokens_per_block
        for index in range(sequence.computed // size, min(computed // size, len(sequence.request.prefix_keys))):
            self.pool.publish(sequence.allocation.blocks[index], sequence.request.prefix_keys[index])

    def _produce(self, sequence: Sequence, emissions: list[Emission]) -> None:
        """Add one token, emit when a group is full, leave when the answer is."""
        sequence.produced += 1
        final = sequence.produced == sequence.request.max_tokens
        ready = sequence.produced - sequence.emitted
        if final or sequence.emitted == 0 or ready >= self.config.stream_interval:
            emissions.append(Emission(sequence.request.request_id, sequence.emitted, ready, final))
            sequence.emitted = sequence.produced
        if final:
            self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Free the sequence's place and blocks."""
        self.lanes[sequence.lane].remove(sequence)
        del self.active[sequence.request.request_id]
        self.pool.release(sequence.allocation)
