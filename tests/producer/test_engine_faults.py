"""An engine that does not start, or runs out of memory, is one line that names the flags that help."""

from typing import Any

import pytest
import torch

from arwkv_producer.config import GenerateConfig
from arwkv_producer.run import backend
from arwkv_producer.teacher.engine_faults import EngineFailed, engine_faults
from arwkv_store.errors import UsageError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--gpu-memory-fraction"),
        (ValueError("No available memory for the cache blocks.\nTry increasing it"), "--tensor-parallel"),
        (RuntimeError("Engine core initialization failed."), "--verbose shows all of them"),
    ],
)
def test_a_start_that_fails_names_the_flags(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def failing(*arguments: Any) -> None:
        raise error

    job: Any = type("Job", (), {"__getattr__": lambda self, name: self, "__call__": lambda self, *_: self})()
    monkeypatch.setattr(backend, "TeacherEngine", failing)
    with pytest.raises(EngineFailed, match=r"vLLM failed \(\w+: .*\); ") as caught:
        backend.start_engine(GenerateConfig(teacher="t", data=("d",), out="o", self_check="never"), job)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_faults_that_say_what_to_do_pass() -> None:
    with pytest.raises(UsageError, match="as it is"), engine_faults("t"):
        raise UsageError("as it is")
