"""`student generate`: continue a prompt, token by token, with the recurrent state."""

from pathlib import Path
from typing import Any

import torch
import transformers

from arwkv_store.errors import NotFound
from arwkv_student.settings import GenerateSettings
from arwkv_student.train import load_student


def generate(settings: GenerateSettings) -> dict[str, Any]:
    """Stream the continuation to stdout (not with `json`), and return it."""
    folder = Path(settings.model)
    model = load_student(folder).eval()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise NotFound(f"model {folder}: no tokenizer there; copy the base's tokenizer.json beside it") from error
    transformers.set_seed(settings.seed)
    streamer = None if settings.json else transformers.TextStreamer(tokenizer, skip_prompt=True)
    inputs = encode(tokenizer, settings)
    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=settings.max_new_tokens,
            streamer=streamer,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **sampling,
        )
    new = output[0, inputs["input_ids"].shape[1] :]
    return {"prompt": settings.prompt, "text": tokenizer.decode(new, skip_special_tokens=True), "tokens": len(new)}


def encode(tokenizer: Any, settings: GenerateSettings) -> dict[str, torch.Tensor]:
    """The prompt's token ids and mask [1, T]; an empty prompt begins with the end-of-text token."""
    text = settings.prompt
    if settings.chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text)["input_ids"] or [tokenizer.eos_token_id]
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
