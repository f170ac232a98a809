"""The worker's side: vLLM's models with a pooler that keeps distributions and hidden states of every prompt token.

Runs eagerly: hidden states are read by module hooks, which CUDA graphs and compiled graphs would skip. Shapes: T tokens
scheduled in one engine step (several requests, one after another), C model width, V vocabulary, K kept candidates.
"""

import functools
import inspect
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate
from vllm.platforms import current_platform
from vllm.v1.pool.metadata import PoolingMetadata

from arwkv_producer.numerics.distribution import OUTSIDE_VOCABULARY, Draws, rows_of, summarize
from arwkv_producer.numerics.sampling import uniforms
from arwkv_producer.teacher.capture import CaptureSettings
from arwkv_producer.teacher.handover import HostCopies, Rows, open_handover

TASK = "token_embed"
"""The vLLM pooling task that gives the pooler every prompt token, in chunks where the scheduler cuts a prompt."""


class HiddenTap:
    """Copies chosen hidden states, rounded to bf16, while the model runs; `take` hands over one step's.

    They are on their way to main memory meanwhile, and there once `copies` has been waited for.
    """

    def __init__(self, decoder: nn.Module, settings: CaptureSettings, copies: HostCopies) -> None:
        self._states: dict[str, Tensor] = {}
        self._copies = copies
        layers: Any = decoder.layers
        for layer in settings.attention_layers:
            attention_of(layers[layer]).register_forward_hook(self._keep_output(f"attn.{layer}"))
        if shows_streams(decoder):
            kept = frozenset(settings.boundary_layers)
            vars(decoder)["_maybe_add_hidden_state"] = functools.partial(self._keep_shown, kept)
            return
        for layer in settings.boundary_layers:
            entered: Any = layers[layer] if layer < len(layers) else decoder.norm
            hook = self._keep_stream(layer, stream_arguments(entered))
            entered.register_forward_pre_hook(hook, with_kwargs=True)

    def _keep_output(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Tensor | tuple[Tensor, ...]) -> None:
            # The norm that follows adds into this very tensor: copy now.
            own = output if isinstance(output, Tensor) else output[0]
            self._keep(name, own)

        return hook

    def _keep_stream(self, layer: int, bound: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._keep_boundary(layer, *bound(*arguments, **named))

        return hook

    def _keep_shown(
        self, kept: frozenset[int], shown: list[Tensor], layer: int, hidden: Tensor, residual: Tensor | None
    ) -> list[Tensor]:
        """In place of vLLM's own, whose list holds tensors that the next norm may add into."""
        if layer in kept:
            self._keep_boundary(layer, hidden, residual)
        return shown

    def _keep_boundary(self, layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        stream = hidden.float() if residual is None else hidden.float() + residual.float()
        self._keep(f"boundary.{layer}", stream)

    def _keep(self, name: str, state: Tensor) -> None:
        self._states[name] = self._copies.start(_rows(state).to(torch.bfloat16, copy=True))

    def take(self) -> dict[str, Tensor]:
        states, self._states = self._states, {}
        return states


def shows_streams(decoder: nn.Module) -> bool:
    """Whether the stack tells of the stream between its layers as it runs: vLLM's auxiliary hidden states (EAGLE-3)."""
    return "_maybe_add_hidden_state" in type(decoder).forward.__code__.co_names


def attention_of(layer: Any) -> Any:
    """A layer's attention, by whichever name vLLM's class has for it."""
    return next(getattr(layer, name) for name in ("self_attn", "attn", "attention") if hasattr(layer, name))


def _rows(state: Tensor) -> Tensor:
    """[T, C]: models that vLLM takes from transformers have a batch of one."""
    return state.flatten(0, -2)


def stream_arguments(entered: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What finds, among the arguments that a layer or the last norm is called with, the two parts of the stream."""
    # What a norm dispatches to says how it is called; a layer's names differ in their order from family to family.
    names = [name for name in inspect.signature(entered.forward).parameters if name not in ("args", "kwargs")]
    first = "hidden_states" if "hidden_states" in names else None

    def bound(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        given = dict(zip(names, arguments, strict=False)) | named
        if first is not None:
            return given[first], given.get("residual")
        return arguments[0], named.get("residual", arguments[1] if len(arguments) > 1 else None)

    return bound


def text_decoder(model: Any) -> nn.Module:
    """The stack of layers of a causal language model, or of a multimodal model's text part."""
    owner = model.get_language_model() if hasattr(model, "get_language_model") else model
    decoder: nn.Module = getattr(owner, "model", owner)
    return decoder


class OwnLogits:
    """The model's own logits (scale, soft cap, biases, tied heads), of this rank's share of the head."""

    def __init__(self, model: nn.Module) -> None:
        # In a tuple, so that the model does not become a submodule of its own pooler.
        self._model: tuple[Any] = (model,)
        self._head: Any = None
        processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
        assert processors, f"{type(model).__name__} has no logits processor"
        for processor in processors:
            processor._get_logits = functools.partial(self._of_this_rank, processor)

    def _of_this_rank(
        self, processor: Any, hidden_TC: Tensor, head: Any, bias: Tensor | None, skip_gather: bool = False
    ) -> Tensor:
        self._head = head
        logits_TV: Tensor = processor._apply_head(head, hidden_TC, bias)
        return logits_TV

    def __call__(self, hidden_TC: Tensor) -> Tensor:
        """[T, V of this rank, padding included] in fp32."""
        logits_TV: Tensor = self._model[0].compute_logits(hidden_TC)
        return logits_TV.float()

    def token_ids(self, hidden_TC: Tensor, vocab_size: int) -> range:
        """The tokenizer's ids that this rank's columns stand for; empty where they are all padding."""
        if self._head is None:
            self(hidden_TC[:1])
        shard = getattr(self._head, "shard_indices", None)
        if shard is None:  # a plain linear layer: every rank has all of it
            return range(vocab_size)
        return range(int(shard.org_vocab_start_index), min(vocab_size, int(shard.org_vocab_end_index)))


class CapturePooler(Pooler):  # type: ignore[misc]  # vLLM has no types
    """Turns one engine step's final hidden states into captured rows and hands over each prompt once it is complete."""

    def __init__(self, language_model: nn.Module, settings: CaptureSettings) -> None:
        super().__init__()
        self._settings = settings
        self._first_rank = get_tensor_model_parallel_rank() == 0
        self._copies = HostCopies()
        self._tap = HiddenTap(text_decoder(language_model), settings, self._copies) if self._first_rank else None
        self._logits = OwnLogits(language_model)
        self._handover = open_handover(settings.handover_folder)

    def get_supported_tasks(self) -> Set[Any]:
        return {TASK}

    def get_pooling_updates(self, task: Any) -> PoolingParamsUpdate:
        """Ask for the prompt's token ids: the next one's log-probability is captured."""
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> list[Tensor | None]:
        """Rows of `hidden_states` [T, C] are the requests' scheduled tokens in order; answers rows held per request."""
        cursor = pooling_metadata.get_pooling_cursor()
        lengths = cursor.num_scheduled_tokens_cpu.tolist()
        ends = cursor.seq_lens_cpu.tolist()
        prompt_lengths = cursor.prompt_lens_cpu.tolist()
        uniforms = self._uniforms(pooling_metadata, lengths, ends)
        rows = self._capture(hidden_states, _next_ids(pooling_metadata, lengths, ends, prompt_lengths), uniforms)
        acknowledged: list[Tensor | None] = []
        start_row = 0
        for request, (length, end, prompt_length) in enumerate(zip(lengths, ends, prompt_lengths, strict=True)):
            piece = {name: tensor[start_row : start_row + length] for name, tensor in rows.items()}
            start_row += length
            pieces: list[Any] = pooling_metadata.pooling_states[request].hidden_states_cache
            if end == length:  # the prompt's beginning; anything held is from before a preemption
                pieces.clear()
            pieces.append(piece)
            if end < prompt_length:
                acknowledged.append(None)
                continue
            complete = _join(pieces)
            pieces.clear()
            key = (pooling_metadata.pooling_params[request].extra_kwargs or {}).get("key")
            if key is not None and self._first_rank:  # vLLM's own profiling run has no key
                self._handover.put(key, complete)
            acknowledged.append(torch.tensor([prompt_length], dtype=torch.int32))
        return acknowledged

    def _uniforms(self, metadata: PoolingMetadata, lengths: list[int], ends: list[int]) -> Tensor | None:
        """[T, S] random numbers that depend on sample and position alone, None where nothing is drawn."""
        if not self._settings.draws:
            return None
        keys = [int((params.extra_kwargs or {}).get("key", 0)) for params in metadata.pooling_params]
        keys_T = torch.tensor(keys).repeat_interleave(torch.tensor(lengths))
        positions = [torch.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]
        return uniforms(keys_T, torch.cat(positions), self._settings.draws)

    def _capture(self, hidden_TC: Tensor, next_ids_T: Tensor, uniforms_TS: Tensor | None) -> Rows:
        """All of one step's rows, on the CPU."""
        rows = self._distributions(hidden_TC, next_ids_T, uniforms_TS) if self._settings.top_k else {}
        if self._tap is not None:
            rows |= {name: state_TC[: len(hidden_TC)] for name, state_TC in self._tap.take().items()}
            if self._settings.final:
                rows["final"] = hidden_TC.to(torch.bfloat16, copy=True)
        rows = {name: self._copies.start(tensor) for name, tensor in rows.items()}
        self._copies.wait()
        return rows

    def _distributions(self, hidden_TC: Tensor, next_ids_T: Tensor, uniforms_TS: Tensor | None) -> Rows:
        settings = self._settings
        ids = self._logits.token_ids(hidden_TC, settings.vocab_size)
        first_id, columns = ids.start, max(len(ids), 1)
        gather = None if get_tensor_model_parallel_world_size() == 1 else tensor_model_parallel_all_gather
        next_ids_T = next_ids_T.to(hidden_TC.device)
        chunk = settings.logits_rows(columns, hidden_TC.device.type == "cpu")
        summaries = []
        for start in range(0, len(hidden_TC), chunk):
            rows = slice(start, start + chunk)
            logits_TV = self._logits(hidden_TC[rows])[:, :columns]
            if not ids:  # this rank's share of the head is all padding
                logits_TV = torch.full_like(logits_TV, OUTSIDE_VOCABULARY)
            draws = None
            if uniforms_TS is not None:
                draws = Draws(uniforms_TS[rows].to(hidden_TC.device), settings.draws_outside_top_k)
            summaries.append(
                summarize(logits_TV, settings.top_k, next_ids_T[rows], draws=draws, first_id=first_id, gather=gather)
            )
        return rows_of(summaries)


def _next_ids(metadata: PoolingMetadata, lengths: list[int], ends: list[int], prompt_lengths: list[int]) -> Tensor:
    """For each scheduled token the prompt's next token, -1 at the prompt's end; [T] int64 on the CPU."""
    prompts = metadata.get_prompt_token_ids_cpu()
    pieces = []
    for prompt, length, end, prompt_length in zip(prompts, lengths, ends, prompt_lengths, strict=True):
        pieces.append(prompt[end - length + 1 : end + 1])
        if end == prompt_length:
            pieces.append(torch.full((1,), -1, dtype=prompt.dtype))
    return torch.cat(pieces)


def _join(pieces: list[Rows]) -> Rows:
    if len(pieces) == 1:
        return pieces[0]
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _rotate_every_head(model: nn.Module) -> None:
    """Let latent attention rotate positions in torch: vLLM's CPU kernel (0.32) takes its queries [T, heads, C] for one
    head, and leaves the others as they were."""
    for module in model.modules():
        rotary: Any = getattr(module, "rotary_emb", None)
        if rotary is not None and hasattr(module, "qk_nope_head_dim"):
            rotary._forward_method = rotary.forward_native


class Capturing:
    """Mixed into a vLLM causal language model: makes it a pooling model whose pooler captures."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]  # the model beside the mixin
        assert vllm_config.model_config.enforce_eager, "hidden states are read by hooks, which compiled graphs skip"
        if current_platform.is_cpu():
            _rotate_every_head(self)  # type: ignore[arg-type]  # the model beside the mixin is a Module
        settings = CaptureSettings.from_json(vllm_config.additional_config["arwkv_capture"])
        self.pooler = CapturePooler(self, settings)  # type: ignore[arg-type]  # the model beside the mixin is a Module
