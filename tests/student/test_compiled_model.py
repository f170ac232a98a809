"""A whole student under torch.compile, which cannot trace numba's loops."""

import pytest
import torch
from test_generate import student, tokens_BT


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore:.*jit.script_method:DeprecationWarning")  # torch's compiler, of itself
@pytest.mark.parametrize(("preset", "attention_layers"), [("arwkv", ()), ("rad-rwkv7", (0, 2))])
def test_compiled_student_decodes_what_it_reads_whole(preset: str, attention_layers: tuple[int, ...]) -> None:
    model, ids_BT = student(preset, attention_layers).eval(), tokens_BT(2, 10)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        whole_BTV = model(input_ids=ids_BT).logits
        torch.testing.assert_close(compiled(input_ids=ids_BT, use_cache=False).logits, whole_BTV, rtol=1e-4, atol=1e-4)
        cache = model.prefill(ids_BT[:, :-3])
        for t in range(7, 10):
            one_B1V = compiled(input_ids=ids_BT[:, t : t + 1], past_key_values=cache, use_cache=True).logits
            torch.testing.assert_close(one_B1V[:, 0], whole_BTV[:, t], rtol=1e-4, atol=1e-4)
