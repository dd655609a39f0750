"""A small decoder-only transformer with a paged key-value cache; its weights are random, from a fixed seed.

Built like Llama (root mean square norm before each part, rotary positions, gated feed-forward) except that the
norms have no weights of their own: random ones would change nothing. One pass takes any mixture of prompt
chunks and single decoding tokens, each with its own block table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

VOCABULARY = 4096
SEED = 20240601
ROTARY_BASE = 10_000.0
FEED_FORWARD_FACTOR = 4
# All but cuDNN's attention, which builds a plan for each new shape: with growing contexts, for every step.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

Tensor = Any
"""The engine is type-checked without PyTorch."""


@dataclass(frozen=True)
class Shape:
    """How large the model is."""

    layers: int
    width: int
    heads: int

    @property
    def head_width(self) -> int:
        """Numbers per head; even, because positions rotate pairs."""
        return self.width // self.heads


@dataclass(frozen=True)
class Part:
    """New tokens of one sequence for the positions from `start` on; everything before them is in `blocks`."""

    tokens: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first position after the new tokens."""
        return self.start + len(self.tokens)


class PagedCache:
    """Keys and values of all sequences, in blocks that are allocated once; who owns which is the caller's matter."""

    def __init__(self, shape: Shape, blocks: int, tokens_per_block: int, device: Tensor, dtype: Tensor) -> None:
        self._tokens_per_block = tokens_per_block
        size = (shape.layers, 2, blocks * tokens_per_block, shape.heads, shape.head_width)
        # Zeros rather than whatever was there: a NaN would survive being masked.
        self._store = torch.zeros(size, device=device, dtype=dtype)

    def slots(self, part: Part, start: int) -> list[int]:
        """Where the positions from `start` to the part's end lie, by its block table."""
        size = self._tokens_per_block
        return [part.blocks[at // size] * size + at % size for at in range(start, part.end)]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep the keys and values of new tokens."""
        self._store[layer, 0, slots] = keys
        self._store[layer, 1, slots] = values

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values in these slots."""
        return self._store[layer, 0, slots], self._store[layer, 1, slots]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer."""

    qkv: Tensor
    out: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class _Group:
    """Parts with equally many new tokens, which attend in one batch."""

    rows: Tensor
    """[parts, new tokens]: which rows of the flat batch."""
    slots: Tensor
    """[parts, longest context]: where the context lies; the ends of shorter ones point anywhere."""
    mask: Tensor
    """[parts, 1, new tokens, longest context]: what each token may look at, which is never such an end."""


class Transformer:
    """The weights, and what they make of tokens."""

    def __init__(self, shape: Shape, device: Tensor, dtype: Tensor) -> None:
        self.shape = shape
        self.device = device
        # Drawn on the CPU, so that every device gets the same weights.
        source = torch.Generator().manual_seed(SEED)

        def weight(rows: int, columns: int) -> Tensor:
            drawn = torch.randn(rows, columns, generator=source) * rows**-0.5
            return drawn.to(device=device, dtype=dtype)

        width, inner = shape.width, shape.width * FEED_FORWARD_FACTOR
        self.embedding = weight(VOCABULARY, width) * VOCABULARY**0.5
        self.layers = [
            Layer(
                weight(width, 3 * width),
                weight(width, width),
                weight(width, inner),
                weight(width, inner),
                weight(inner, width),
            )
            for _ in range(shape.layers)
        ]
        self.head = weight(width, VOCABULARY)
        pairs = torch.arange(shape.head_width // 2, device=device, dtype=torch.float32)
        self._frequencies = ROTARY_BASE ** (-2 * pairs / shape.head_width)

    def logits(self, parts: Seq[Part], cache: PagedCache) -> Tensor:
        """Compute all new tokens in one pass; [parts, vocabulary], for what follows the last of each part."""
        with torch.inference_mode(), sdpa_kernel(ATTENTION):
            tokens = self._indices([token for part in parts for token in part.tokens])
            positions = self._indices([at for part in parts for at in range(part.start, part.end)])
            writes = self._indices([slot for part in parts for slot in cache.slots(part, part.start)])
            groups = self._groups(parts, cache)
            hidden = self.embedding[tokens]
            for number, layer in enumerate(self.layers):
                queries, keys, values = self.project(layer, hidden, positions)
                cache.write(number, writes, keys, values)
                mixed = torch.empty_like(queries)
                for group in groups:
                    mixed[group.rows] = _attend(queries[group.rows], *cache.read(number, group.slots), group.mask)
                hidden = self.feed_forward(layer, hidden + mixed.flatten(1) @ layer.out)
            ends, row = [], 0
            for part in parts:
                row += len(part.tokens)
                ends.append(row - 1)
            return _normed(hidden[self._indices(ends)]) @ self.head

    def project(self, layer: Layer, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [tokens, heads, head width], the first two turned to their positions."""
        flat = (_normed(hidden) @ layer.qkv).view(-1, 3, self.shape.heads, self.shape.head_width)
        queries, keys, values = flat.unbind(1)
        angles = (positions[:, None].float() * self._frequencies)[:, None, :]
        return _turned(queries, angles), _turned(keys, angles), values

    def feed_forward(self, layer: Layer, hidden: Tensor) -> Tensor:
        """The second half of a layer."""
        normed = _normed(hidden)
        return hidden + (functional.silu(normed @ layer.gate) * (normed @ layer.up)) @ layer.down

    def _groups(self, parts: Seq[Part], cache: PagedCache) -> list[_Group]:
        """All decoding tokens make one batch; so do prompt chunks of the same length."""
        by_length: dict[int, list[tuple[int, Part]]] = defaultdict(list)
        row = 0
        for part in parts:
            by_length[len(part.tokens)].append((row, part))
            row += len(part.tokens)
        groups = []
        for length, members in by_length.items():
            longest = max(part.end for _, part in members)
            slots = [cache.slots(part, 0) + [0] * (longest - part.end) for _, part in members]
            seen_by = self._indices([[part.start + new for new in range(length)] for _, part in members])
            position = torch.arange(longest, device=self.device)
            mask = (position <= seen_by[:, :, None])[:, None]
            rows = self._indices([[row + new for new in range(length)] for row, _ in members])
            groups.append(_Group(rows, self._indices(slots), mask))
        return groups

    def _indices(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self.device, dtype=torch.long)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot product attention over [parts, tokens, heads, head width]."""
    swapped = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
    return functional.scaled_dot_product_attention(*swapped, attn_mask=mask).transpose(1, 2)


def _normed(hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:])


def _turned(vectors: Tensor, angles: Tensor) -> Tensor:
    """Rotate each pair of numbers by its position's angle."""
    first, second = vectors.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(vectors.dtype)
