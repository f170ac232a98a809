"""llama.cpp through its C interface, as the wheel of xllamacpp exports it: logits and token ids, on one thread.

Structures of parameters differ between builds behind their first fields, so they are kept as the library fills them in.
"""

import ctypes
import importlib.util
import statistics
import time
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint32, c_void_p
from pathlib import Path
from types import TracebackType

import numpy as np

ROOM_BYTES = 4096
"""More than any of its structures needs; what lies behind them is not read."""


class ModelParameters(ctypes.Structure):
    _fields_ = (("rest", ctypes.c_uint64 * (ROOM_BYTES // 8)),)


class ContextParameters(ctypes.Structure):
    _fields_ = (
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")),
        ("rest", ctypes.c_uint64 * (ROOM_BYTES // 8)),
    )


class Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "llama_log_set": (None, [LogCallback, c_void_p]),
    "llama_model_default_params": (ModelParameters, []),
    "llama_context_default_params": (ContextParameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParameters]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParameters]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_batch_init": (Batch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_vocab_get_suppress_tokens": (POINTER(c_int32), [c_void_p, POINTER(ctypes.c_size_t)]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_state_seq_get_size": (ctypes.c_size_t, [c_void_p, c_int32]),
    "llama_free": (None, [c_void_p]),
    "llama_model_free": (None, [c_void_p]),
}


@LogCallback
def _silent(level: int, text: bytes, data: object) -> None:
    """llama.cpp tells hundreds of lines on stderr."""


def _library() -> ctypes.CDLL:
    found = importlib.util.find_spec("xllamacpp")
    assert found is not None
    assert found.origin is not None
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp.*.so"))))
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_silent, None)
    return library


class LlamaCpp:
    """A GGUF file in llama.cpp, as a context manager."""

    def __init__(
        self, file: Path, sequences: int = 1, batch_tokens: int = 512, context_tokens: int = 8192, threads: int = 1
    ) -> None:
        self._of, self._batch_tokens, self._threads = _library(), batch_tokens, threads
        self._model = self._of.llama_model_load_from_file(str(file).encode(), self._of.llama_model_default_params())
        assert self._model, f"llama.cpp does not load {file}"
        self._vocabulary = self._of.llama_model_get_vocab(self._model)
        parameters = self._of.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = context_tokens, batch_tokens, batch_tokens
        parameters.n_seq_max = sequences
        self._parameters = parameters
        self.rows = self._of.llama_vocab_n_tokens(self._vocabulary)

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._of.llama_model_free(self._model)

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The token ids of a text; `special`: markers in it become their tokens."""
        content = text.encode()
        ids = (c_int32 * (len(content) + 8))()
        count = self._of.llama_tokenize(self._vocabulary, content, len(content), ids, len(ids), True, special)
        assert count >= 0
        return list(ids[:count])

    def ends_a_text(self, token: int) -> bool:
        """Whether generation stops at the token."""
        return bool(self._of.llama_vocab_is_eog(self._vocabulary, token))

    def logits(self, *sequences: Sequence[int]) -> list[np.ndarray]:
        """Logits [T, V] of each sequence's every token; all sequences together in each batch, from an empty state."""
        with self._context() as context:
            return context.decode([list(ids) for ids in sequences])

    def greedy(self, ids: Sequence[int], tokens: int, never: Sequence[int] = ()) -> list[int]:
        """The likeliest continuation, token by token."""
        said: list[int] = []
        with self._context() as context:
            (logits_TV,) = context.decode([list(ids)])
            for _ in range(tokens):
                logits_V = logits_TV[-1].copy()
                logits_V[list(never)] = -np.inf
                said.append(int(logits_V.argmax()))
                (logits_TV,) = context.decode([[said[-1]]], start=len(ids) + len(said) - 1)
        return said

    def timed(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, float, int]:
        """Prompts that differ in their last token: seconds to read the first one, of the median step, and its bytes.

        The others continue from a copy of what the first one has read. Bytes are those of its saved sequence.
        """
        shared, steps = list(prompts[0][:-1]), []
        with self._context() as context:
            before = time.perf_counter()
            context.decode([shared], last_only=True)
            first_s = time.perf_counter() - before
            size_bytes = int(self._of.llama_state_seq_get_size(context.context, 0))
            memory = self._of.llama_get_memory(context.context)
            for sequence in range(1, len(prompts)):
                self._of.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
            for step in range(tokens + 1):
                before = time.perf_counter()
                context.decode([[ids[-1]] for ids in prompts], start=len(shared) + step, last_only=True)
                steps.append(time.perf_counter() - before)
        return first_s, statistics.median(steps[1:]), size_bytes

    def _context(self) -> "_Context":
        return _Context(self._of, self._model, self._parameters, self.rows, self._batch_tokens, self._threads)


class _Context:
    """One run's state."""

    def __init__(
        self, of: ctypes.CDLL, model: int, parameters: ContextParameters, rows: int, batch: int, threads: int
    ) -> None:
        self.of, self.rows, self.batch_tokens = of, rows, batch
        self.context = of.llama_init_from_model(model, parameters)
        assert self.context, "llama.cpp makes no context"
        of.llama_set_n_threads(self.context, threads, threads)

    def __enter__(self) -> "_Context":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.of.llama_free(self.context)

    def decode(self, sequences: list[list[int]], start: int = 0, *, last_only: bool = False) -> list[np.ndarray]:
        each = self.batch_tokens // len(sequences)
        parts: list[list[np.ndarray]] = [[] for _ in sequences]
        for first in range(0, max(map(len, sequences)), each):
            chunks = [ids[first : first + each] for ids in sequences]
            logits_NV = self._batch(chunks, start + first, last_only)
            for part, chunk in zip(parts, chunks, strict=True):
                part.append(logits_NV[: len(chunk)])
                logits_NV = logits_NV[len(chunk) :]
        return [np.concatenate(part) for part in parts]

    def _batch(self, chunks: list[list[int]], start: int, last_only: bool) -> np.ndarray:
        total = sum(map(len, chunks))
        batch = self.of.llama_batch_init(total, 0, 1)
        try:
            batch.n_tokens, row = total, 0
            for sequence, chunk in enumerate(chunks):
                for offset, token in enumerate(chunk):
                    wanted = not last_only or offset == len(chunk) - 1
                    batch.token[row], batch.pos[row], batch.logits[row] = token, start + offset, wanted
                    batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
                    row += 1
            assert self.of.llama_decode(self.context, batch) == 0
            rows = len(chunks) if last_only else total
            return np.ctypeslib.as_array(self.of.llama_get_logits(self.context), (rows, self.rows)).copy()
        finally:
            self.of.llama_batch_free(batch)
