"""Using a student in Python: continue several texts at once, keep the state of a long text and continue from it.

Example: `python examples/use_student.py --model runs/student`
"""

import dataclasses
from typing import Any

from arwkv_store.commands.command_line import main


@dataclasses.dataclass(frozen=True)
class UseConfig:
    """Continue texts with a student."""

    model: str
    """Folder of a student."""
    tokens: int = 16
    """Tokens to add."""
    json: bool = False
    """Print the texts as one JSON document."""


def use_student(config: UseConfig) -> dict[str, Any]:
    """Texts of a batch, and of a kept state."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import arwkv_student  # noqa: F401 - registers the architecture

    model = AutoModelForCausalLM.from_pretrained(config.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(config.model, padding_side="left")

    batch = tokenizer(["def ", "import os\n\nfor name in"], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    said_BT = model.generate(**batch, max_new_tokens=config.tokens, do_sample=False)

    # A state of fixed size stands for all that was read: a long text is read once.
    ids_1T = tokenizer("class Reader:\n", return_tensors="pt").input_ids
    state = model.prefill(ids_1T, chunk_tokens=2048)
    more_1T = torch.cat([ids_1T, tokenizer("    def ", return_tensors="pt").input_ids], dim=1)
    kept_1T = model.generate(
        more_1T,
        attention_mask=torch.ones_like(more_1T),
        past_key_values=state,
        max_new_tokens=config.tokens,
        do_sample=False,
    )
    texts = [*tokenizer.batch_decode(said_BT, skip_special_tokens=True), tokenizer.decode(kept_1T[0])]
    if not config.json:
        print("\n\n".join(texts))
    return {"texts": texts}


if __name__ == "__main__":
    main("use_student", "Continue texts with a student.", use_student)
