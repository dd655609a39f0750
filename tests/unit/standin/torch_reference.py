"""What the paged, batched, chunked pass is compared with: all tokens of one sequence at once, no cache."""

from __future__ import annotations

import random

import torch
from standin_engine.config import EngineConfig
from standin_engine.scheduler import Request, Scheduler, Step
from standin_engine.torch_forward import TorchForward, members_of, parts_of
from standin_engine.torch_model import VOCABULARY, Transformer


def plain_logits(model: Transformer, tokens: list[int]) -> torch.Tensor:
    """The logits after the last token, by textbook attention over the whole context."""
    with torch.inference_mode():
        hidden = model.embedding[torch.tensor(tokens, device=model.device)]
        positions = torch.arange(len(tokens), device=model.device)
        future = torch.ones(len(tokens), len(tokens), device=model.device, dtype=torch.bool).triu(1)
        for layer in model.layers:
            queries, keys, values = (part.transpose(0, 1) for part in model.project(layer, hidden, positions))
            scores = queries @ keys.transpose(1, 2) / model.shape.head_width**0.5
            mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ values
            hidden = model.feed_forward(layer, hidden + mixed.transpose(0, 1).flatten(1) @ layer.out)
        last = hidden[-1]
        return last * (last.pow(2).mean() + torch.finfo(last.dtype).eps).rsqrt() @ model.head


def prompt(length: int, seed: int) -> tuple[int, ...]:
    """Token ids that look like nothing in particular."""
    source = random.Random(seed)
    return tuple(source.randrange(VOCABULARY) for _ in range(length))


class Comparison:
    """Computes what a real scheduler plans, and compares every step with the plain pass over the same tokens."""

    def __init__(self, config: EngineConfig) -> None:
        self.scheduler = Scheduler(config)
        self.forward = TorchForward(config)
        self.contexts: dict[int, list[int]] = {}
        self.worst = 0.0
        self.compared = 0
        self.most_parts = 0

    def submit(self, number: int, tokens: tuple[int, ...], answer: int, shared: int = 0) -> None:
        """Queue a request whose first `shared` blocks may be found in the cache."""
        size = self.scheduler.config.tokens_per_block
        keys = tuple(hash(tokens[: (block + 1) * size]) for block in range(shared))
        self.contexts[number] = list(tokens)
        self.scheduler.submit(Request(number, len(tokens), answer, keys, tokens))

    def step(self, lane: int) -> bool:
        """One step of one lane; False when it has nothing to do."""
        step = self.scheduler.begin_step(lane)
        if step is None:
            return False
        self.compute(step)
        self.scheduler.finish_step(step)
        return True

    def compute(self, step: Step) -> None:
        """Compute a step, remember the largest difference, and feed the model's choice back."""
        parts = parts_of(step)
        self.most_parts = max(self.most_parts, len(parts))
        logits = self.forward.model.logits(parts, self.forward.cache)
        for sequence, part, found in zip(members_of(step), parts, logits, strict=True):
            context = self.contexts[sequence.request.request_id]
            expected = plain_logits(self.forward.model, context[: part.end])
            self.worst = max(self.worst, (found - expected).abs().max().item())
            self.compared += 1
            sequence.token = int(found.argmax())
            if part.end == len(context):
                context.append(sequence.token)

    def finish(self) -> None:
        """Step all lanes in turn until nothing is left."""
        busy = True
        while busy:
            busy = False
            for lane in range(self.scheduler.config.stages):
                busy |= self.step(lane)
