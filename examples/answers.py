"""What a teacher and its student say to the same prompts."""

import json
from pathlib import Path
from typing import Any

PROMPTS = ("def __init__(self, ", "import os\nimport sys\n", "    for key, value in ")
QUESTIONS = ("What is the capital of France?", "Why is the sky blue?", "Write a Python function that adds two numbers.")


def continuations(teacher: str, run: Path, *, chat: bool, tokens: int = 60) -> list[tuple[str, str, str]]:
    """(prompt, the teacher's text, the student's) of three prompts, drawn with the same random numbers.

    With `chat`, the prompts are questions in the teacher's chat template. RUN/samples.jsonl keeps the texts: the
    service's page shows them beside the run's curves.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    import arwkv_student  # noqa: F401  registers the student's architecture with transformers

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    models = [AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval() for name in (teacher, run)]
    rows = []
    for prompt in QUESTIONS if chat and tokenizer.chat_template else PROMPTS:
        inputs = _inputs(tokenizer, prompt)
        texts = []
        for model in models:
            torch.manual_seed(0)
            ids_BT = model.generate(**inputs, max_new_tokens=tokens, do_sample=True, temperature=0.7)
            texts.append(tokenizer.decode(ids_BT[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        rows.append((prompt, texts[0], texts[1]))
    lines = (json.dumps({"prompt": prompt, "teacher": teachers, "student": own}) for prompt, teachers, own in rows)
    (run / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return rows


def _inputs(tokenizer: Any, prompt: str) -> Any:
    if prompt not in QUESTIONS:
        return tokenizer(prompt, return_tensors="pt")
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
