"""`student generate`: continue a prompt, token by token, with the recurrent state."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arwkv_store.errors import CorruptShard, UsageError
from arwkv_store.format.model_files import require_whole_weights
from arwkv_store.text.chat_template import ASKED, STAND_IN
from arwkv_store.text.json_lines import require_characters
from arwkv_student.bases.tokenizer import open_tokenizer
from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.loading import (
    accelerator,
    checkpoint_hash,
    computes_in_bf16,
    hold_products_in_bf16,
    kept_attention,
    load_student,
    padding_rows,
)
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.run.durable import put_in_place
from arwkv_student.settings import GenerateSettings


def generate(settings: GenerateSettings) -> dict[str, Any]:
    """Stream the continuation to stdout (not with `json`), and return it.

    With `state`, continues from the state and text in that file, if it exists, and stores the new ones there.
    """
    folder = Path(settings.model)
    model = _load(folder).eval().to(accelerator())
    tokenizer = open_tokenizer(f"model {folder}", folder)
    transformers.set_seed(settings.seed)
    if settings.state is not None and not isinstance(model, ArwkvForCausalLM):
        raise UsageError(f"--state: {folder} keeps its attention, and has no state of constant size; leave it out")
    checkpoint = checkpoint_hash(folder) if settings.state is not None else ""
    cache, before_1T = _restored(settings.state, checkpoint, model)
    ids_1T = torch.cat([before_1T, encode(tokenizer, settings, before_1T)], dim=1)
    ids_1T = ids_1T.to(model.device)
    streamer = None if settings.json else transformers.TextStreamer(tokenizer, skip_prompt=True)
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    bf16 = computes_in_bf16(settings.dtype)
    if bf16:
        hold_products_in_bf16(model)
    with torch.inference_mode(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
        if cache is not None:
            cache = model.prefill(ids_1T[:, cache.get_seq_length() : -1], cache=cache)
        output_1T = model.generate(
            ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            past_key_values=cache,
            max_new_tokens=settings.max_new_tokens,
            streamer=streamer,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            suppress_tokens=padding_rows(tokenizer, model.config.vocab_size),
            **sampling,
        )
    if settings.state is not None and cache is not None:
        _keep(settings.state, checkpoint, cache, output_1T)
    new = output_1T[0, ids_1T.shape[1] :]
    return {"prompt": settings.prompt, "text": tokenizer.decode(new, skip_special_tokens=True), "tokens": len(new)}


def _load(folder: Path) -> Any:  # transformers is untyped
    """The folder's model: a student, or the causal language model that it is with preset `transformer`."""
    if not kept_attention(folder):
        return load_student(folder)
    require_whole_weights(f"model {folder}", folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def encode(tokenizer: Any, settings: GenerateSettings, before_1T: Tensor) -> Tensor:
    """The prompt's token ids [1, T], to be read after `before_1T`, which may be empty.

    An empty text becomes the end-of-text token. A chat continues after the previous reply, without the text that the
    template writes before a first question.
    """
    text, begins = require_characters(settings.prompt, "--prompt"), before_1T.numel() == 0
    if settings.chat:
        text = _chat_turn(tokenizer, text, begins=begins)
    ids = tokenizer(text, add_special_tokens=begins and not settings.chat)["input_ids"]
    if settings.chat and not begins and ids[:1] == before_1T[0, -1:].tolist():
        ids = ids[1:]  # the previous reply was not truncated: its end token is there already
    if not ids and begins:
        ids = [tokenizer.eos_token_id]
    return torch.tensor([ids], dtype=torch.long)


def _chat_turn(tokenizer: Any, text: str, *, begins: bool) -> str:
    """The question as the template writes it; after a reply, from the end of that reply's last word."""
    before = [] if begins else [ASKED, {"role": "assistant", "content": STAND_IN}]
    turns = [*before, {"role": "user", "content": text}]
    written: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if begins:
        return written
    _, reply, behind = written.partition(STAND_IN)
    if not reply:
        raise UsageError("--chat --state: the chat template leaves out earlier replies; start again without --state")
    return behind


def _restored(
    file: Path | None, checkpoint: str, model: transformers.PreTrainedModel
) -> tuple[ArwkvCache | None, Tensor]:
    """The state in `file` and the token ids [1, T] that made it; an empty one if there is no file yet.

    None for a model that keeps its attention.
    """
    if not isinstance(model, ArwkvForCausalLM):
        return None, torch.empty(1, 0, dtype=torch.long)
    if file is None or not file.exists():
        return ArwkvCache(model.config), torch.empty(1, 0, dtype=torch.long)
    try:
        with safe_open(file, framework="pt", device=str(model.device)) as opened:
            made_by = (opened.metadata() or {}).get("checkpoint")
            kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 -- it is no mapping
    except (SafetensorError, OSError) as error:
        raise CorruptShard(f"--state {file}: {error}; remove it to start again") from error
    if made_by != checkpoint:
        raise UsageError(f"--state {file}: another student wrote it; name another file, or remove it to start again")
    tokens_1T = kept.pop("tokens").cpu()
    return ArwkvCache.from_state_dict(model.config, kept), tokens_1T


def _keep(file: Path, checkpoint: str, cache: ArwkvCache, tokens_1T: Tensor) -> None:
    fresh = file.with_name(file.name + ".new")
    try:
        save_file(cache.state_dict() | {"tokens": tokens_1T.contiguous()}, fresh, {"checkpoint": checkpoint})
        put_in_place(fresh, file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"--state {file}: {error}; name a file that can be written") from error
