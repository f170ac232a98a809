"""A student whose modules are wrapped says the same with its state, token by token, as when it reads the whole text."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from test_model import VARIANTS, student, tokens_BT
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from arwkv_store.errors import UsageError
from arwkv_student.model.low_rank import LowRank
from arwkv_student.model.modeling import ArwkvForCausalLM


class Adapted(nn.Module):
    """A linear layer and a low-rank adapter beside it, as adapter libraries put them in a linear layer's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(0.3 * torch.randn(4, base.in_features))
        self.b = nn.Parameter(0.3 * torch.randn(base.out_features, 4))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + x @ self.a.T @ self.b.T


def linears(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every linear layer but the head, by its parent and name."""
    found = [(parent, name) for parent in model.modules() for name, child in parent.named_children()
             if isinstance(child, nn.Linear) and name != "lm_head"]  # fmt: skip
    assert len(found) > 20
    return found


def adapted(model: ArwkvForCausalLM, _: Path) -> nn.Module:
    for parent, name in linears(model):
        setattr(parent, name, Adapted(getattr(parent, name)))
    return model


def hooked(model: ArwkvForCausalLM, _: Path) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | LowRank):
            module.register_forward_hook(lambda _module, _inputs, y: 1.2 * y)
    return model


def parametrized(model: ArwkvForCausalLM, _: Path) -> nn.Module:
    for parent, name in linears(model):
        parametrizations.weight_norm(getattr(parent, name))
    return model


def quantized(model: ArwkvForCausalLM, _: Path) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-any-return] # untyped


def offloaded(model: ArwkvForCausalLM, _: Path) -> nn.Module:
    cpu_offload(model, torch.device("cpu"))
    return model


def on_disk(model: ArwkvForCausalLM, folder: Path) -> nn.Module:
    disk_offload(model, str(folder), torch.device("cpu"))
    return model


def in_bf16(model: ArwkvForCausalLM, _: Path) -> nn.Module:
    return model.bfloat16()


WRAPPERS = [adapted, hooked, parametrized, quantized, offloaded, on_disk, in_bf16]
WITH_A_NORM = VARIANTS[-2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its older quantization
@pytest.mark.filterwarnings("ignore::UserWarning")  # likewise
@pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: str(wrap.__name__))
@pytest.mark.parametrize("variant", [VARIANTS[0], WITH_A_NORM], ids=lambda variant: "-".join([variant[0], *variant[1]]))
def test_wrapped_student_decodes_what_it_reads(
    variant: tuple[str, dict[str, object]], wrap: Callable[[ArwkvForCausalLM, Path], nn.Module], tmp_path: Path
) -> None:
    preset, overrides = variant
    plain, tokens = student(preset, **overrides), tokens_BT(2, 12)
    model = wrap(student(preset, **overrides), tmp_path)
    with torch.inference_mode():
        whole = model(tokens, use_cache=False).logits[:, -1]
        cache = model(tokens[:, :-1], use_cache=True).past_key_values
        step = model(tokens[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
    loose = wrap in (quantized, in_bf16)  # activations are rounded, each time by another scale
    torch.testing.assert_close(step, whole, rtol=0, atol=0.15 if loose else 1e-4)
    if wrap in (adapted, hooked):
        assert (whole - plain(tokens, use_cache=False).logits[:, -1]).abs().max() > 0.3


@pytest.mark.parametrize("wrap", [quantized, on_disk, parametrized], ids=lambda wrap: str(wrap.__name__))
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_loss_that_reads_the_heads_weight_refuses_a_wrapped_head(
    wrap: Callable[[ArwkvForCausalLM, Path], nn.Module], tmp_path: Path
) -> None:
    model = wrap(student(), tmp_path)
    if wrap is parametrized:
        parametrizations.weight_norm(model.lm_head)
    with pytest.raises(UsageError, match="lm_head is wrapped"):
        model(tokens_BT(), head_loss=lambda hidden, weight: hidden.sum() + weight.sum())


def test_packed_documents_need_no_word_about_a_cache() -> None:
    model, bounds = student(), torch.tensor([0, 5, 12], dtype=torch.int32)
    packed = model(tokens_BT(1, 12), cu_seqlens=bounds)
    assert packed.past_key_values is None
    alone = model(tokens_BT(1, 12)[:, 5:], use_cache=False).logits
    torch.testing.assert_close(packed.logits[:, 5:], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="use_cache=False"):
        model(tokens_BT(1, 12), cu_seqlens=bounds, use_cache=True)
    with pytest.raises(UsageError, match="use_cache=False"):
        model(tokens_BT(1, 12), cu_seqlens=bounds, past_key_values=model(tokens_BT(1, 4)).past_key_values)
