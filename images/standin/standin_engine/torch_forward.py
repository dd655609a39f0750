"""A forward pass that really computes: a small transformer on the CPU or a GPU, as long as that takes.

The scheduler stays in charge: each step computes exactly the prompt chunks and decoding tokens that it planned,
in the cache blocks that it allocated. The model's own choice is fed back as the next input; what leaves the
replica are the numbered tokens all the same, because those prove completeness.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from typing import Any

import torch

from standin_engine.config import ConfigError, EngineConfig
from standin_engine.forward import Done
from standin_engine.scheduler import Sequence, Step
from standin_engine.torch_model import VOCABULARY, PagedCache, Part, Shape, Transformer

LOGGER = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchForward:
    """One device and its thread, which computes the steps of all lanes one after the other."""

    def __init__(self, config: EngineConfig) -> None:
        self.slowdown = 1.0
        device = device_for(config.torch_device)
        dtype = DTYPES[config.torch_dtype]
        shape = Shape(config.torch_layers, config.torch_width, config.torch_heads)
        self.model = Transformer(shape, device, dtype)
        self.cache = PagedCache(shape, config.kv_blocks, config.tokens_per_block, device, dtype)
        # Libraries and kernels load with the first pass, which must not be a client's. No sequence is there
        # yet, so block 0 is nobody's.
        self._choose([Part((0,), 0, (0,))])
        LOGGER.info("torch forward pass: %s on %s in %s", shape, device, config.torch_dtype)
        self._steps: queue.SimpleQueue[tuple[Step, list[Part]] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def vocabulary(self) -> int:
        """Prompts must be given as token ids below this."""
        return VOCABULARY

    def start(self, done: Done) -> None:
        """Begin to compute."""
        self._thread = threading.Thread(target=self._compute, args=(done,), name="forward", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the step that is being computed and drop the others."""
        self._stopping.set()
        self._steps.put(None)
        if self._thread is not None:
            self._thread.join()

    def run(self, step: Step) -> None:
        """Queue the step for the device. Block tables are copied: a cancelled sequence loses its own at once."""
        self._steps.put((step, parts_of(step)))

    def _compute(self, done: Done) -> None:
        """Compute one step after the other until told to stop."""
        while (work := self._steps.get()) is not None and not self._stopping.is_set():
            step, parts = work
            started = time.monotonic()
            try:
                chosen = self._choose(parts)
            except Exception as problem:
                # Whatever broke (out of memory, a lost GPU), the cache cannot be trusted any more.
                LOGGER.exception("a step could not be computed")
                done(step, f"{type(problem).__name__}: {problem}")
                return
            for sequence, token in zip(members_of(step), chosen, strict=True):
                sequence.token = token
            if self.slowdown > 1:
                self._stopping.wait((time.monotonic() - started) * (self.slowdown - 1))
            done(step, None)

    def _choose(self, parts: list[Part]) -> list[int]:
        """The most likely next token of each part; bringing them to the host waits for the device."""
        if not all(part.tokens for part in parts):
            raise ValueError("a prompt came without its token ids")
        chosen: list[int] = self.model.logits(parts, self.cache).argmax(dim=-1).tolist()
        return chosen


def members_of(step: Step) -> list[Sequence]:
    """The sequences of a step in the order of its parts."""
    return [sequence for sequence, _ in step.prefills] + list(step.decodes)


def parts_of(step: Step) -> list[Part]:
    """What a step computes: the planned chunk of each prompt, and the last token of each answer."""
    parts = []
    for sequence, count in step.prefills:
        start = sequence.computed
        parts.append(Part(sequence.request.tokens[start : start + count], start, tuple(sequence.allocation.blocks)))
    for sequence in step.decodes:
        # The first answer token came from the prompt's last one, so the newest is not in the cache yet.
        start = sequence.computed + sequence.produced - 1
        parts.append(Part((sequence.token,), start, tuple(sequence.allocation.blocks)))
    return parts


def device_for(name: str) -> Any:
    """The device of that name; `auto` is the GPU when there is one."""
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name == "cuda" and not available:
        raise ConfigError("torch_device is 'cuda', but PyTorch sees no CUDA device; use 'auto' or 'cpu'")
    return torch.device(name)
