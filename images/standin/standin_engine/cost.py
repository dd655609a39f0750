"""How long one step of a large model takes, from published measurements.

The constants describe Llama-2-70B in fp16 on one DGX-H100 (8 GPUs, tensor parallel 8). They are medians of
the profile that the authors of Splitwise (Patel et al., "Splitwise: Efficient Generative LLM Inference Using
Phase Splitting", ISCA 2024, arXiv:2311.18677) publish with their simulator:
github.com/Mutinifni/splitwise-sim, data/perf_model.csv, commit 8f99e7dc, rows llama2-70b, h100-80gb,
tensor_parallel 8:

  prompt 512, batch  1, 128 tokens   prompt  53.39 ms   token 29.76 ms
  prompt 512, batch 64, 128 tokens                      token 50.16 ms
  prompt 2048, batch 1, 128 tokens   prompt 136.80 ms

A pipeline of several such stages keeps the latency of a step (each stage holds its share of the layers) while
several micro-batches, the lanes, are under way at once.

Cross-check by memory traffic: a token of this model's context is 80 layers x 8 KV heads x 128 x 2 (key,
value) x 2 bytes = 320 KiB; the profile's 576 tokens are 189 MB, read in 7 us at 8 x 3.35 TB/s (NVIDIA H100
SXM data sheet). The measured cost of one more sequence is 46 times that floor: in practice kernels and
sampling dominate, which is why the measured slope is used.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_BASE_SECONDS = 0.02976 - (0.05016 - 0.02976) / 63
"""One step without any sequence: the line through batch 1 and batch 64, at 0."""

PER_SEQUENCE_SECONDS = (0.05016 - 0.02976) / 63
"""The slope of that line, 0.324 ms."""

PER_PREFILL_TOKEN_SECONDS = (0.13680 - 0.05339) / (2048 - 512)
"""The slope of prefill between prompts of 512 and 2048 tokens, 0.054 ms a token.

Below 512 tokens the profile shows no slope (reading the weights dominates), above 2048 a steeper one (0.12
ms, the attention); the scaled workload's longest prompt has 1,405 tokens.
"""


@dataclass(frozen=True)
class CostModel:
    """Seconds of one step of one lane, linear in its sequences and its prompt tokens."""

    base: float
    per_sequence: float
    per_prefill_token: float

    def step_seconds(self, sequences: int, prefill_tokens: int) -> float:
        """The time from the start of a step until its tokens exist."""
        return self.base + self.per_sequence * sequences + self.per_prefill_token * prefill_tokens
