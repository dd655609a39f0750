"""The real forward pass: paged, batched and chunked, it says what a plain pass over the whole context says."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from standin_engine import forward
from standin_engine.config import ConfigError, EngineConfig
from standin_engine.scheduler import Broken
from standin_engine.service import Service, text_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed; the simulated forward pass needs none")

from standin_engine.torch_forward import TorchForward, parts_of  # noqa: E402
from standin_engine.torch_model import PagedCache, Part, Shape, Transformer  # noqa: E402
from torch_reference import Comparison, plain_logits, prompt  # noqa: E402

# Logits are of the order of 1; float32 sums in another order differ in the sixth digit.
TOLERANCE = 1e-4
PATIENCE = 60.0
SMALL = EngineConfig(
    forward="torch",
    torch_device="cpu",
    torch_layers=2,
    torch_width=64,
    torch_heads=4,
    stages=2,
    max_batch=8,
    chunk_tokens=11,
    kv_blocks=24,
    tokens_per_block=4,
    max_waiting=16,
)
MODEL = Transformer(Shape(2, 64, 4), torch.device("cpu"), torch.float32)


class Client:
    """Collects one answer."""

    def __init__(self) -> None:
        self.text = ""
        self.error: str | None = None
        self.gone = False
        self.ended = threading.Event()

    def send(self, text: str, final: bool) -> None:
        self.text += text
        if final:
            self.ended.set()

    def fail(self, message: str) -> None:
        self.error = message
        self.ended.set()

    def is_cancelled(self) -> bool:
        return self.gone


def cache_of(blocks: int, kind: type[PagedCache] = PagedCache) -> PagedCache:
    return kind(MODEL.shape, blocks, 4, MODEL.device, torch.float32)


def difference(found: torch.Tensor, tokens: tuple[int, ...]) -> float:
    return float((found - plain_logits(MODEL, list(tokens))).abs().max())


def chunked(tokens: tuple[int, ...], chunk: int, cache: PagedCache, blocks: tuple[int, ...]) -> torch.Tensor:
    """The logits after the last chunk."""
    for start in range(0, len(tokens), chunk):
        logits = MODEL.logits([Part(tokens[start : start + chunk], start, blocks)], cache)
    return logits[0]


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 30])
def test_a_prompt_in_chunks_over_scattered_blocks_equals_the_whole(chunk: int) -> None:
    tokens = prompt(30, 1)

    assert difference(chunked(tokens, chunk, cache_of(16), (9, 2, 15, 0, 7, 4, 11, 1)), tokens) < TOLERANCE


def test_a_mixed_batch_equals_each_sequence_alone() -> None:
    cache = cache_of(32)
    first, second, third = prompt(13, 1), prompt(6, 2), prompt(9, 3)
    tables = [(5, 3, 8, 1), (2, 9), (4, 7, 6)]
    chunked(first[:-1], 12, cache, tables[0])
    chunked(second[:-1], 12, cache, tables[1])
    chunked(third[:4], 4, cache, tables[2])

    parts = [Part(third[4:], 4, tables[2]), Part(first[-1:], 12, tables[0]), Part(second[-1:], 5, tables[1])]
    logits = MODEL.logits(parts, cache)

    assert [difference(*pair) < TOLERANCE for pair in zip(logits, (third, first, second), strict=True)] == [True] * 3


class AliasesBlocks(PagedCache):
    """Ignores the block table: every sequence lies in the first blocks."""

    def slots(self, part: Part, start: int) -> list[int]:
        return list(range(start, part.end))


class ForgetsValues(PagedCache):
    """Writes no values."""

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().write(layer, slots, keys, torch.zeros_like(values))


class SwapsLayers(PagedCache):
    """Gives every layer the first one's keys and values."""

    def read(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().read(0, slots)


@pytest.mark.parametrize("broken", [AliasesBlocks, ForgetsValues, SwapsLayers])
def test_a_broken_cache_is_noticed(broken: type[PagedCache]) -> None:
    comparison = Comparison(SMALL)
    comparison.forward.cache = cache_of(SMALL.kv_blocks, broken)
    for number in range(3):
        comparison.submit(number, prompt(10, number), 3)
    comparison.finish()

    assert comparison.worst > 100 * TOLERANCE


def test_whatever_the_scheduler_plans_equals_the_plain_pass() -> None:
    comparison = Comparison(SMALL)
    for number in range(12):
        comparison.submit(number, prompt(5 + 3 * number % 17, number), 1 + 5 * number % 9)
    comparison.finish()

    assert comparison.worst < TOLERANCE
    assert comparison.most_parts >= 3, "the steps were not batched"
    assert comparison.compared > 60
    assert comparison.scheduler.pool.used == 0, "blocks leaked"


def test_a_shared_prompt_beginning_is_read_from_the_other_sequences_blocks() -> None:
    comparison = Comparison(SMALL)
    beginning = prompt(12, 1)
    comparison.submit(1, beginning + prompt(3, 2), 4, shared=3)
    comparison.step(0)
    comparison.step(0)
    comparison.submit(2, beginning + prompt(5, 3), 4, shared=3)
    comparison.finish()

    assert comparison.scheduler.pool.free == SMALL.kv_blocks
    assert comparison.compared == (2 + 3) + (1 + 3), "the second prompt took more than one chunk: nothing was shared"
    assert comparison.worst < TOLERANCE


@pytest.mark.parametrize("in_order", [True, False])
def test_a_cancelled_sequences_blocks_serve_the_next_one_if_steps_are_computed_in_order(in_order: bool) -> None:
    comparison = Comparison(SMALL)
    comparison.submit(1, prompt(9, 1), 80)
    late = comparison.scheduler.begin_step(0)
    assert late is not None
    on_its_way = parts_of(late)
    comparison.scheduler.cancel(1)
    assert comparison.scheduler.pool.used == 0, "a cancelled sequence kept its blocks"
    comparison.submit(2, prompt(9, 2), 80)
    successor = comparison.scheduler.begin_step(1)
    assert successor is not None

    if in_order:
        comparison.forward.model.logits(on_its_way, comparison.forward.cache)
    comparison.compute(successor)
    if not in_order:
        comparison.forward.model.logits(on_its_way, comparison.forward.cache)
    comparison.scheduler.finish_step(successor)
    for _ in range(10):
        comparison.step(1)

    assert comparison.scheduler.finish_step(late) == []
    assert (comparison.worst < TOLERANCE) is in_order


def serve(tmp_path: Path, **settings: object) -> tuple[Service, forward.Forward]:
    values = {**vars(SMALL), "control_path": str(tmp_path / "control.json"), "cancel_check_seconds": 0.05, **settings}
    config = EngineConfig(**values)  # type: ignore[arg-type]
    passes = forward.create(config)
    service = Service(config, passes)
    service.start()
    return service, passes


@pytest.mark.parametrize("stages", [1, 3])
def test_the_engine_loses_no_token_and_frees_every_block(tmp_path: Path, stages: int) -> None:
    service, _ = serve(tmp_path, stages=stages)
    clients = [Client() for _ in range(14)]
    try:
        for number, client in enumerate(clients):
            service.submit("same words before " * 3 + f"w{number} " * number, 3 + number, number % 4 > 0, client)
        for client in clients:
            assert client.ended.wait(PATIENCE), f"no end after {client.text!r}"
        load = service.load()
    finally:
        service.stop()

    assert [client.error for client in clients] == [None] * 14
    assert [client.text for client in clients] == [text_of(0, 3 + number) for number in range(14)]
    assert (load.kv_used, load.scheduled, load.waiting) == (0, 0, 0)


def test_the_same_prompt_gets_the_same_choices_alone_and_in_company() -> None:
    alone, together = Comparison(SMALL), Comparison(SMALL)
    alone.submit(1, prompt(12, 5), 10)
    for number in (1, 2, 3):
        together.submit(number, prompt(12, 4 + number), 10)
    alone.finish()
    together.finish()

    assert alone.contexts[1] == together.contexts[1]
    assert len(set(alone.contexts[1][12:])) > 3, "the model only repeats itself"


def test_a_client_that_goes_away_frees_its_memory(tmp_path: Path) -> None:
    service, passes = serve(tmp_path, max_batch=2)
    passes.slowdown = 50.0
    client = Client()
    try:
        service.submit("a b c", 80, True, client)
        client.gone = True
        assert client.ended.wait(PATIENCE)

        assert client.error == "the client went away"
        assert service.load().kv_used == 0
    finally:
        service.stop()


def test_a_forward_pass_that_breaks_ends_every_answer_with_the_reason(tmp_path: Path) -> None:
    service, passes = serve(tmp_path)
    assert isinstance(passes, TorchForward)
    clients = [Client(), Client()]
    try:
        passes.model.head = passes.model.head[:7]
        for client in clients:
            service.submit("a b c", 5, True, client)
        for client in clients:
            assert client.ended.wait(PATIENCE)
            assert client.error is not None
            assert client.error.startswith("the forward pass failed: RuntimeError")
        with pytest.raises(Broken, match="the forward pass failed"):
            service.submit("a", 1, True, Client())
    finally:
        service.stop()


def test_a_step_takes_as_long_as_it_takes(tmp_path: Path) -> None:
    service, passes = serve(tmp_path, stages=1)
    durations = []
    try:
        for slowdown in (1.0, 100.0):
            passes.slowdown = slowdown
            client = Client()
            started = time.monotonic()
            service.submit("a", 8, True, client)
            assert client.ended.wait(PATIENCE)
            durations.append(time.monotonic() - started)
    finally:
        service.stop()

    assert durations[1] > 5 * durations[0]


def test_cuda_without_a_gpu_is_refused_by_name() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="torch_device is 'cuda', but PyTorch sees no CUDA device"):
        forward.create(EngineConfig(forward="torch", torch_device="cuda"))
