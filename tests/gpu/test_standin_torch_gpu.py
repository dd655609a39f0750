"""The real forward pass on a GPU: the same results as the plain pass, and no token lost end to end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from standin_engine import forward
from standin_engine.config import EngineConfig
from standin_engine.service import Service, text_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch_reference import Comparison, prompt  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]

PATIENCE = 120.0
STREAMS = 48
ANSWER = 64
MODEL = EngineConfig(
    forward="torch",
    torch_device="cuda",
    torch_layers=4,
    torch_width=512,
    torch_heads=8,
    stages=2,
    max_batch=64,
    chunk_tokens=96,
    kv_blocks=512,
    tokens_per_block=16,
    max_waiting=64,
)


class Client:
    """Collects one answer."""

    def __init__(self) -> None:
        self.text = ""
        self.error: str | None = None
        self.ended = threading.Event()

    def send(self, text: str, final: bool) -> None:
        self.text += text
        if final:
            self.ended.set()

    def fail(self, message: str) -> None:
        self.error = message
        self.ended.set()

    def is_cancelled(self) -> bool:
        return False


def compared(**settings: object) -> Comparison:
    """Serve a mixture of lengths and compare every step."""
    comparison = Comparison(EngineConfig(**{**vars(MODEL), **settings}))  # type: ignore[arg-type]
    for number in range(12):
        comparison.submit(number, prompt(20 + 37 * number % 301, number), 2 + 5 * number % 11)
    comparison.finish()
    return comparison


# Two orders of the same sums: float32 differs in the fifth digit of logits of the order of 1, bfloat16 in the second.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.25)])
def test_whatever_the_scheduler_plans_equals_the_plain_pass_on_the_gpu(dtype: str, tolerance: float) -> None:
    comparison = compared(torch_dtype=dtype)
    print(f"{dtype}: {comparison.compared} logit rows, largest difference {comparison.worst:.2e}")

    assert comparison.worst < tolerance
    assert comparison.most_parts >= 3
    assert comparison.scheduler.pool.used == 0


def test_the_engine_on_the_gpu_loses_no_token_and_frees_every_block(tmp_path: Path) -> None:
    values = {**vars(MODEL), "torch_dtype": "bfloat16", "control_path": str(tmp_path / "control.json")}
    config = EngineConfig(**values)
    service = Service(config, forward.create(config))
    service.start()
    clients = [Client() for _ in range(STREAMS)]
    started = time.monotonic()
    try:
        for number, client in enumerate(clients):
            service.submit(f"w{number} " * (1 + 7 * number), ANSWER, True, client)
        for client in clients:
            assert client.ended.wait(PATIENCE), f"no end after {client.text!r}"
        seconds = time.monotonic() - started
        load = service.load()
    finally:
        service.stop()
    print(f"{STREAMS} streams of {ANSWER} tokens on {torch.cuda.get_device_name()}: {STREAMS * ANSWER / seconds:.0f}/s")

    assert [(client.error, client.text) for client in clients] == [(None, text_of(0, ANSWER))] * STREAMS
    assert (load.kv_used, load.scheduled, load.waiting) == (0, 0, 0)
