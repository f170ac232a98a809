"""A byte-level BPE tokenizer as GGUF metadata. llama.cpp knows by name how a text is split before BPE."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from arwkv_student.bases.tokenizer import open_tokenizer
from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.loading import padding_rows

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NUMBERS = "|\\p{N}|", "|\\p{N}{1,3}|"
SPLITS = {QWEN2: "qwen2", QWEN2.replace(*NUMBERS): "llama-bpe"}
"""llama.cpp's name by the pattern that splits a text."""
NFC = {"type": "NFC"}


@dataclass(frozen=True)
class GgufTokenizer:
    """What llama.cpp needs of a tokenizer, and why it cannot have the same."""

    tokenizer: Any  # transformers is untyped
    document: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "GgufTokenizer":
        """Read a student's tokenizer. Raises NotFound where there is none."""
        tokenizer = open_tokenizer(f"model {folder}", folder)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        return cls(tokenizer, {} if backend is None else json.loads(backend.to_str()))

    def obstacles(self) -> list[str]:
        """Every reason why llama.cpp cannot tokenize as this tokenizer does."""
        model, found = self.document.get("model", {}), []
        if model.get("type") != "BPE" or model.get("byte_fallback"):
            return ["the tokenizer is not byte-level BPE"]
        if self.document["normalizer"] not in (None, NFC):
            found.append(f"the tokenizer normalizes text by {self.document['normalizer']['type']}")
        if self.pre_tokenizer is None:
            known = ", ".join(["gpt-2", "smollm", *SPLITS.values()])
            found.append(f"the tokenizer splits text in a way that has no name in llama.cpp; known are {known}")
        return found

    @property
    def notes(self) -> list[str]:
        """Where llama.cpp's token ids differ for some texts."""
        normalizes = self.document["normalizer"] == NFC
        return ["llama.cpp does not normalize to NFC: give it text with composed characters"] if normalizes else []

    @property
    def pre_tokenizer(self) -> str | None:
        """llama.cpp's name for how a text is split before BPE; None where it has none."""
        found: dict[str, Any] = self.document["pre_tokenizer"] or {"type": "none"}
        steps = found["pretokenizers"] if found["type"] == "Sequence" else [found]
        *before, last = steps
        if last["type"] != "ByteLevel" or last["add_prefix_space"]:
            return None
        if [step["type"] for step in before] == ["Split"] and not last["use_regex"]:
            split = before[0]
            whole = split["behavior"] == "Isolated" and not split["invert"]
            name = SPLITS.get(split["pattern"].get("Regex", "")) if whole else None
            return name if self.document["model"].get("ignore_merges", False) == (name == "llama-bpe") else None
        if not last["use_regex"] or self.document["model"].get("ignore_merges", False):
            return None
        if before == [{"type": "Digits", "individual_digits": True}]:
            return "smollm"
        return None if before else "gpt-2"

    def add_to(self, writer: gguf.GGUFWriter, config: ArwkvConfig) -> None:
        """Write vocabulary, merges, special and suppressed tokens, end tokens and chat template."""
        assert self.pre_tokenizer is not None, "a tokenizer with obstacles"
        tokens, kinds = self._rows(config.vocab_size)
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in self.document["model"]["merges"])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(list(merges))
        begins, ends = self._added_around()
        writer.add_add_bos_token(begins)
        writer.add_add_eos_token(ends)
        self._add_special(writer, config)
        if padding := padding_rows(self.tokenizer, config.vocab_size):
            writer.add_array("tokenizer.ggml.suppress_tokens", padding)
        if self.tokenizer.chat_template:
            writer.add_chat_template(self.tokenizer.chat_template)

    def _rows(self, rows: int) -> tuple[list[str], list[int]]:
        """The text and the kind of each row of the head; of a row that is no token's, a name that no text gives."""
        names = {row: token for token, row in self.tokenizer.get_vocab().items()}
        added = self.tokenizer.added_tokens_decoder
        tokens, kinds = [], []
        for row in range(rows):
            kind = gguf.TokenType.NORMAL if row in names else gguf.TokenType.UNUSED
            if row in added:
                kind = gguf.TokenType.CONTROL if added[row].special else gguf.TokenType.USER_DEFINED
            tokens.append(names.get(row, f"[PAD{row}]"))
            kinds.append(int(kind))
        return tokens, kinds

    def _added_around(self) -> tuple[bool, bool]:
        """Whether the tokenizer puts its first and its last token around a text."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        return whole[0] != plain[0], whole[-1] != plain[-1]

    def _add_special(self, writer: gguf.GGUFWriter, config: ArwkvConfig) -> None:
        for token, add in zip(
            end_tokens(config),
            (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
            strict=False,
        ):
            add(token)
        begin = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else config.bos_token_id
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else config.pad_token_id
        if begin is not None:
            writer.add_bos_token_id(begin)
        if padding is not None:
            writer.add_pad_token_id(padding)


def end_tokens(config: ArwkvConfig) -> list[int]:
    """The tokens that end a text, in the configuration's order."""
    ends = config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]
