"""The teacher in transformers: a capture without vLLM, and what the engines' captures are compared with.

Slower than vLLM, a prompt at a time. Shapes: T tokens of a prompt, V head rows (padding included), C model width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from arwkv_producer.numerics.distribution import Draws, rows_of, summarize
from arwkv_producer.numerics.sampling import uniforms
from arwkv_producer.teacher.capture import CaptureSettings
from arwkv_producer.teacher.engine import DISTRIBUTION
from arwkv_producer.teacher.families import family_of
from arwkv_producer.teacher.teacher import Teacher, auto_class
from arwkv_producer.teacher.vllm_setup import unheard
from arwkv_store.errors import UsageError


class TransformersTeacher:
    """The teacher, in an arithmetic of choice with an fp32 head; hooks read hidden states where blocks are known."""

    def __init__(self, teacher: Teacher, dtype: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        options = {"revision": teacher.revision, "dtype": getattr(torch, dtype), **_quantization(teacher)}
        if teacher.text.get("attn_logit_softcapping"):  # which transformers' fast attention leaves out
            options["attn_implementation"] = "eager"
        try:
            model = auto_class(teacher).from_pretrained(teacher.model, **options).eval()
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"--teacher {teacher.name}: transformers cannot load it ({reason})") from error
        self._model = _moved(model, self.device, teacher)
        self._states: dict[str, Tensor] = {}
        _compute_head_in_fp32(model.get_output_embeddings())
        decoder = model.get_decoder()
        decoder.register_forward_hook(self._keep_final)
        is_known, layers = family_of(teacher.config).form is not None, getattr(decoder, "layers", ())
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._keep_input(f"boundary.{number}"))
            if is_known:
                layer.self_attn.register_forward_hook(self._keep_output(f"attn.{number}"))
        if hasattr(decoder, "norm"):
            decoder.norm.register_forward_pre_hook(self._keep_input(f"boundary.{len(layers)}"))

    def _keep_output(self, name: str) -> Any:
        return lambda module, arguments, output: self._states.__setitem__(name, output[0][0])

    def _keep_input(self, name: str) -> Any:
        def hook(module: Any, arguments: Any) -> None:
            if arguments:  # a block that takes its stream by name is none that is known here
                self._states[name] = arguments[0][0]

        return hook

    def _keep_final(self, module: Any, arguments: Any, output: Any) -> None:
        self._states["final"] = output.last_hidden_state[0]

    @torch.inference_mode()
    def run(self, tokens_T: NDArray[np.int32]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [T, V] in fp32, and hidden states [T, C] by name in the teacher's arithmetic; on the device."""
        ids_1T = torch.from_numpy(tokens_T.astype(np.int64))[None].to(self.device)
        logits_TV = self._model(ids_1T, use_cache=False).logits[0].float()
        return logits_TV, self._states

    def close(self) -> None:
        """Free the model; hooks and states hold on to it."""
        self._model, self._states = None, {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class TransformersEngine:
    """A capture backend: `TransformersTeacher` behind the interface of the engines of vLLM."""

    def __init__(self, teacher: Teacher, dtype: str, settings: CaptureSettings) -> None:
        self._teacher: TransformersTeacher | None = TransformersTeacher(teacher, dtype)
        self._settings = settings
        self.distribution = DISTRIBUTION if settings.top_k else ()
        layers = [f"attn.{layer}" for layer in settings.attention_layers]
        layers += [f"boundary.{layer}" for layer in settings.boundary_layers]
        self._kept = [*layers, "final"] if settings.final else layers

    def capture(
        self, prompts: Sequence[NDArray[np.int32]], keys: Sequence[int], read: Callable[[int], None] = unheard
    ) -> list[dict[str, Any]]:
        """Run the prompts; answer each one's rows (CPU tensors, T rows each) in the order asked.

        `read` is told of each prompt's tokens as soon as it is done.
        """
        answers = []
        for prompt, key in zip(prompts, keys, strict=True):
            answers.append(self._rows(prompt, key))
            read(len(prompt))
        return answers

    @torch.inference_mode()
    def _rows(self, prompt_T: NDArray[np.int32], key: int) -> dict[str, Any]:
        assert self._teacher is not None, "the engine is closed"
        logits_TV, states = self._teacher.run(prompt_T)
        rows = self._distributions(logits_TV, prompt_T, key) if self._settings.top_k else {}
        rows |= {name: states[name].to(torch.bfloat16, copy=True) for name in self._kept}
        return {name: tensor.cpu() for name, tensor in rows.items()}

    def _distributions(self, logits_TV: Tensor, prompt_T: NDArray[np.int32], key: int) -> dict[str, Tensor]:
        settings, device = self._settings, logits_TV.device
        next_ids_T = torch.from_numpy(np.append(prompt_T[1:], -1).astype(np.int64)).to(device)
        positions_T = torch.arange(len(prompt_T))
        chunk = settings.logits_rows(settings.vocab_size, device.type == "cpu")
        summaries = []
        for rows in torch.split(positions_T, chunk):
            draws = None
            if settings.draws:
                uniforms_TS = uniforms(torch.full_like(rows, key), rows, settings.draws).to(device)
                draws = Draws(uniforms_TS, settings.draws_outside_top_k)
            own_TV = logits_TV[rows, : settings.vocab_size]  # a copy: `summarize` uses its memory
            summaries.append(summarize(own_TV, settings.top_k, next_ids_T[rows], draws=draws))
        return rows_of(summaries)

    def close(self) -> None:
        """Free the model."""
        if self._teacher is not None:
            self._teacher.close()
        self._teacher = None


def _compute_head_in_fp32(head: Any) -> None:
    """Its weight stays as it is: it may be the embedding's, too."""
    if isinstance(head, torch.nn.Linear):

        def forward(hidden: Tensor) -> Tensor:
            return F.linear(hidden.float(), head.weight.float(), None if head.bias is None else head.bias.float())

        head.forward = forward  # type: ignore[method-assign,assignment]


def _quantization(teacher: Teacher) -> dict[str, Any]:
    """How transformers is to load it: compressed tensors have to be expanded, or its linear layers refuse them."""
    if teacher.quantization.get("quant_method") != "compressed-tensors":
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}


def _moved(model: Any, device: torch.device, teacher: Teacher) -> Any:
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"--teacher {teacher.name}: its weights do not fit on {device} in the free memory; free the GPU, or set "
            "CUDA_VISIBLE_DEVICES= (to nothing) to run it on the CPU"
        ) from error
