"""What a tuned student ends its replies with: the chat template's end of turn, which a base's own end may not be."""

import json
from pathlib import Path
from typing import Any

from arwkv_store.text.chat_template import ChatTemplate
from arwkv_student.run.durable import write_json


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that the template writes behind a reply; None without a template, or where no token is made for that.

    Raises UsageError where the template refuses a question and its answer.
    """
    if not tokenizer.chat_template:
        return None
    mark = ChatTemplate(tokenizer, None, "the end of a turn").end_mark()
    ids: list[int] = tokenizer(mark, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def add_end_token(folder: Path, token: int) -> None:
    """Add the token to the end tokens of a student's configuration and generation settings."""
    ends: Any = None
    for name in ("config.json", "generation_config.json"):
        document = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        own = document.get("eos_token_id", ends)
        ends = own if isinstance(own, list) else [own] if own is not None else []
        if token not in ends:
            ends = [*ends, token]
        write_json(folder / name, document | {"eos_token_id": ends})
