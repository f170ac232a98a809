"""Run several captures, each in a process forked from one that has vLLM loaded; the tests' process stays clean.

stdin: a JSON list of GenerateConfig's fields. stdout: a JSON list of summaries, or {"error": …} where one was refused.
With `copy_of` and `lost_part` a run finds a copy of that dataset, without that part; with `shuffled` an engine is asked
for each call's samples in random order.
"""

import gc
import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arwkv_producer.run.generate
from arwkv_producer.config import GenerateConfig
from arwkv_producer.run.backend import start_engine
from arwkv_producer.run.generate import generate
from arwkv_store.errors import ArwkvError


class Shuffled:
    """Asks an engine in an order of its own and answers in the one asked."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._chance = engine, random.Random(5)
        self.distribution, self.close = engine.distribution, engine.close

    def capture(self, prompts: Sequence[Any], keys: Sequence[int], read: Any) -> list[Any]:
        order = self._chance.sample(range(len(keys)), len(keys))
        answers = self._engine.capture([prompts[at] for at in order], [keys[at] for at in order], read)
        return [answer for _, answer in sorted(zip(order, answers, strict=True), key=lambda pair: pair[0])]


def run(fields: dict[str, Any]) -> dict[str, Any]:
    """One capture's summary, or its refusal."""
    if source := fields.pop("copy_of", None):
        shutil.copytree(source, fields["out"])
        for path in Path(fields["out"]).glob(f"shards/part-{fields.pop('lost_part'):06d}.*"):
            path.unlink()
    start = start_engine if not fields.pop("shuffled", False) else lambda *given: Shuffled(start_engine(*given))
    arwkv_producer.run.generate.start_engine = start  # type: ignore[assignment]  # an engine in front of the engine
    try:
        return generate(GenerateConfig(**{**fields, "data": tuple(fields["data"])}))
    except ArwkvError as error:
        return {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}


def run_in_a_fork(fields: dict[str, Any]) -> dict[str, Any]:
    """The same in a process that ends with the engine: nothing of it is left, and nothing has to be collected."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        gc.freeze()
        gc.unfreeze = lambda: None  # type: ignore[method-assign]  # else vLLM collects all that is loaded, several times
        try:
            with open(writing, "w") as answer:
                json.dump(run(fields), answer)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with open(reading) as answer:
        summary = answer.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, fields
    found: dict[str, Any] = json.loads(summary)
    return found


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    import loaded_vllm  # noqa: F401 -- before the forks

    json.dump([run_in_a_fork(fields) for fields in json.load(sys.stdin)], sys.stdout)
