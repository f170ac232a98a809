"""Captures with the real engine, and what transformers says of the same text, for the producer's tests."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arwkv_store import Dataset, Sample, open_dataset

RUN_ALL = Path(__file__).with_name("producer") / "run_all.py"
MAX_LENGTH = 96


@dataclass(frozen=True)
class Captures:
    """Datasets by name, and the summary (or the refusal) of each run."""

    folder: Path
    summaries: dict[str, dict[str, Any]]

    def open(self, name: str) -> Dataset:
        return open_dataset(str(self.folder / name))


def run_captures(
    runs: list[dict[str, Any]], timeout_s: float = 280, python: Sequence[str] = (sys.executable,), **environment: str
) -> list[dict[str, Any]]:
    """Summaries of captures made one after another in one fresh process of `python`, with more in its environment."""
    finished = subprocess.run(
        [*python, str(RUN_ALL)],
        input=json.dumps(runs),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=timeout_s,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    summaries: list[dict[str, Any]] = json.loads(finished.stdout)
    return summaries


class Reference:
    """The teacher in transformers, fp32, one sample at a time."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

        is_wrapper = "text_config" in json.loads((folder / "config.json").read_text())
        made = AutoModelForMultimodalLM if is_wrapper else AutoModelForCausalLM
        # Eager: transformers' other attention leaves out the soft cap of scores that Gemma 2 has.
        options = {"dtype": torch.float32, "attn_implementation": "eager"}
        self.model = made.from_pretrained(folder, **options).eval()
        self.vocab_size = vocab_size
        self._attention: dict[int, Tensor] = {}
        decoder = self.model.get_decoder()
        for layer, block in enumerate(decoder.layers):
            if hasattr(block, "self_attn"):
                block.self_attn.register_forward_hook(self._keep(layer))
        decoder.norm.register_forward_pre_hook(self._keep_stream)

    def _keep(self, layer: int) -> Any:
        def hook(module: object, arguments: object, output: tuple[Tensor, ...]) -> None:
            self._attention[layer] = output[0].squeeze(0)

        return hook

    def _keep_stream(self, module: object, arguments: tuple[Tensor]) -> None:
        self._last_stream = arguments[0].squeeze(0)

    @torch.inference_mode()
    def logprobs(self, sample: Sample) -> Tensor:
        """[T, V] over the real vocabulary, float64."""
        logits = self.model(torch.from_numpy(sample.tokens.astype(np.int64))[None]).logits[0, :, : self.vocab_size]
        return logits.double().log_softmax(-1)

    @torch.inference_mode()
    def hidden(self, sample: Sample) -> dict[str, Tensor]:
        """Every state that can be captured, by its name in `Sample.hidden`; fp32."""
        output = self.model(torch.from_numpy(sample.tokens.astype(np.int64))[None], output_hidden_states=True)
        states = {f"attn.{layer}": state for layer, state in self._attention.items()}
        last = len(output.hidden_states) - 1
        states |= {f"boundary.{layer}": state[0] for layer, state in enumerate(output.hidden_states[:last])}
        return states | {f"boundary.{last}": self._last_stream, "final": output.hidden_states[last][0]}
