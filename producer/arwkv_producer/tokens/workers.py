"""Processes that turn records into tokenized documents, in the order of the records."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context, parent_process
from typing import Any

from arwkv_producer.text.conversations import Document, chat_documents, plain_documents
from arwkv_producer.text.encoding import Encoded, encode
from arwkv_producer.text.records import Record
from arwkv_store.errors import TryAgain

BATCHES_AHEAD = 2
"""Batches for each process that are tokenized before they are needed."""

Batch = Sequence[Record]
EncodedBatch = list[tuple[int, Encoded]]
"""Each document, after the number of its record in the batch."""


@dataclass(frozen=True)
class Encoder:
    """Makes documents of records and tokenizes them."""

    tokenizer: Any
    """Of `tokenizers`, or of transformers."""
    field: str
    template: Any = None
    """A transformers tokenizer with a chat template, for conversations; None: plain text."""

    def documents(self, records: Iterable[Record]) -> Iterator[Document]:
        """The records' documents, not tokenized. Raises UsageError naming the record."""
        if self.template is not None:
            return chat_documents(records, self.field, self.template)
        return plain_documents(records, self.field)

    def encoded(self, batch: Batch) -> EncodedBatch:
        """The records' documents, tokenized in one call."""
        pairs = [(number, one) for number, record in enumerate(batch) for one in self.documents([record])]
        documents = [document for _, document in pairs]
        encoded = encode(documents, self.tokenizer, special_tokens=self.template is None) if documents else ()
        return [(number, one) for (number, _), one in zip(pairs, encoded, strict=True)]


class Encoders:
    """`workers` processes, started with the second batch. With one worker, this process does the work."""

    def __init__(self, encoder: Encoder, workers: int) -> None:
        self.encoder, self._workers = encoder, workers
        context = get_context("spawn")  # a fork would copy the locks of the threads that read and report
        pool = partial(ProcessPoolExecutor, workers, mp_context=context, initializer=_begin, initargs=(encoder,))
        self._pool = pool() if workers > 1 else None

    def encoded(self, batches: Iterator[Batch]) -> Iterator[EncodedBatch]:
        """The batches in order; some are tokenized ahead. Raises UsageError of a record, TryAgain if a process dies."""
        first = next(batches, None)
        if first is not None:
            yield self.encoder.encoded(first)
        if self._pool is None:
            yield from map(self.encoder.encoded, batches)
            return
        ahead: deque[Future[EncodedBatch]] = deque()
        try:
            for batch in batches:
                ahead.append(self._pool.submit(_encoded, batch))
                if len(ahead) > BATCHES_AHEAD * self._workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise TryAgain(
                "a tokenizing process died; check the memory, then run the same command again, with fewer --workers"
            ) from error

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_encoder: Encoder | None = None
"""Of a worker's process."""


def _begin(encoder: Encoder) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent process ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = encoder


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _encoded(batch: Batch) -> EncodedBatch:
    assert _encoder is not None, "the pool begins each process with _begin"
    return _encoder.encoded(batch)
