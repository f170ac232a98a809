from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arwkv_kernels import head_product, linear_sparse_kl, sparse_kl
from process_memory import allocated_peak_bytes

T, C, V = 13, 8, 50


@dataclass(frozen=True)
class Problem:
    """A student's last hidden states and head, and a teacher's dense log-probabilities with its stored part."""

    hidden: Tensor
    weight: Tensor
    teacher_TV: Tensor
    counts: Tensor

    def sparse(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tops = [row.topk(int(n)) for row, n in zip(self.teacher_TV, self.counts, strict=True)]
        ids = torch.cat([top.indices for top in tops])
        tail = torch.stack([torch.log1p(-top.values.exp().sum().clamp(max=1)) for top in tops])
        return ids, torch.cat([top.values for top in tops]), self.counts, tail

    def loss(self, **options: Any) -> Tensor:
        return linear_sparse_kl(self.hidden, self.weight, *self.sparse(), **options)

    def dense_losses(self, tail: str, temperature: float) -> Tensor:
        """Each position's loss, straight from the definition."""
        student_TV = (self.hidden.double() @ self.weight.double().T).log_softmax(-1)
        losses = []
        for teacher_V, student_V, n in zip(self.teacher_TV, student_TV, self.counts, strict=True):
            inside = torch.zeros(student_V.shape[0], dtype=torch.bool)
            inside[teacher_V.topk(int(n)).indices] = True
            outcomes = []
            for logprobs_V in (teacher_V, student_V):
                parts = [logprobs_V[inside]]
                if tail != "renormalize" and not inside.all():
                    parts.append(logprobs_V[~inside].logsumexp(0, keepdim=True))
                outcomes.append((torch.cat(parts) / temperature).log_softmax(0))
            terms = outcomes[0].exp() * (outcomes[0] - outcomes[1])
            losses.append((terms[: int(n)] if tail == "drop" else terms).sum())
        return torch.stack(losses)


def make_problem(counts: list[int] | None = None, sharpness: float = 1.0, vocabulary: int = V) -> Problem:
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    counts = counts or [1, 3, 8, 2, 0, 5, 4, 7, 1, 6, 2, 3, 50]
    hidden, weight = normal(len(counts), C) * sharpness, normal(vocabulary, C)
    teacher_TV = (2 * normal(len(counts), vocabulary)).log_softmax(-1)
    return Problem(hidden.requires_grad_(), weight.requires_grad_(), teacher_TV, torch.tensor(counts))


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "drop"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("token_chunk", [1, 5, None])
def test_matches_the_definition_with_gradients(tail: str, temperature: float, token_chunk: int | None) -> None:
    problem = make_problem(counts=[1, 3, 8, 2, 5, 4, 7, 1, 6, 2, 3, 50, 49])
    loss = problem.loss(tail=tail, temperature=temperature, token_chunk=token_chunk)
    expected = problem.dense_losses(tail, temperature).mean()
    torch.testing.assert_close(loss, expected)
    leaves = (problem.hidden, problem.weight)
    for got, want in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "drop"])
def test_gradients_pass_gradcheck(tail: str) -> None:
    problem = make_problem()
    keep = torch.arange(T) % 3 != 0

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_sparse_kl(hidden, weight, *problem.sparse(), tail=tail, temperature=1.5, mask=keep, token_chunk=4)

    assert torch.autograd.gradcheck(run, (problem.hidden, problem.weight))


def test_all_candidates_stored_is_the_dense_kl() -> None:
    problem = make_problem(counts=[V] * T)
    student = (problem.hidden @ problem.weight.T).log_softmax(-1)
    dense = torch.nn.functional.kl_div(student, problem.teacher_TV, log_target=True, reduction="batchmean")
    torch.testing.assert_close(problem.loss(), dense)


@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
def test_a_student_equal_to_its_teacher_has_no_loss(tail: str) -> None:
    problem = make_problem()
    teacher_TV = (problem.hidden.detach() @ problem.weight.detach().T).log_softmax(-1)
    same = Problem(problem.hidden, problem.weight, teacher_TV, problem.counts)
    for temperature in (1.0, 3.0):
        loss = same.loss(tail=tail, temperature=temperature)
        torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)
        torch.testing.assert_close(
            torch.autograd.grad(loss, same.hidden)[0], torch.zeros_like(same.hidden), atol=1e-12, rtol=0
        )


def test_gradient_of_the_logits_sums_to_zero() -> None:
    """With an identity head, hidden states are logits; both distributions sum to one, so each row cancels."""
    problem = make_problem(vocabulary=V)
    logits = torch.randn(T, V, dtype=torch.float64, requires_grad=True)
    loss = linear_sparse_kl(logits, torch.eye(V, dtype=torch.float64), *problem.sparse(), reduction="sum")
    rows = torch.autograd.grad(loss, logits)[0].sum(1)
    torch.testing.assert_close(rows, torch.zeros_like(rows), atol=1e-12, rtol=0)


@pytest.mark.parametrize("sharpness", [30.0, 3000.0])
def test_confident_students_stay_finite_and_right(sharpness: float) -> None:
    """Logits of thousands: 1 - Σq is exactly 0 in fp32, its logarithm is not -inf."""
    problem = make_problem(sharpness=sharpness)
    single = Problem(
        problem.hidden.detach().float().requires_grad_(),
        problem.weight.detach().float(),
        problem.teacher_TV.float(),
        problem.counts,
    )
    for temperature in (1.0, 2.0):
        losses = single.loss(reduction="none", temperature=temperature)
        expected = problem.dense_losses("bucket", temperature).float()
        torch.testing.assert_close(losses.detach(), expected.detach(), rtol=1e-4, atol=1e-4)
        assert torch.isfinite(torch.autograd.grad(losses.sum(), single.hidden)[0]).all()


def test_reductions_and_mask_agree() -> None:
    problem = make_problem()
    keep = torch.arange(T) % 2 == 0
    frozen = Problem(problem.hidden, problem.weight.detach(), problem.teacher_TV, problem.counts)
    each = frozen.loss(reduction="none", mask=keep)
    assert torch.equal(each[~keep], torch.zeros_like(each[~keep]))
    torch.testing.assert_close(each[keep], frozen.loss(reduction="none")[keep])
    torch.testing.assert_close(frozen.loss(reduction="sum", mask=keep), each.sum())
    torch.testing.assert_close(frozen.loss(mask=keep), each.sum() / keep.sum())
    weights = torch.linspace(0, 1, T, dtype=torch.float64)
    (got,) = torch.autograd.grad((each * weights).sum(), frozen.hidden)
    wanted = (frozen.dense_losses("bucket", 1.0) * weights * keep).sum()
    torch.testing.assert_close(got, torch.autograd.grad(wanted, frozen.hidden)[0])


def test_nothing_to_learn_from_is_zero_and_not_nan() -> None:
    problem = make_problem()
    loss = problem.loss(mask=torch.zeros(T, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert problem.hidden.grad is not None
    assert not problem.hidden.grad.any()
    empty = torch.zeros(0)
    silent = torch.full((T,), -torch.inf)
    zero = torch.zeros(T, dtype=torch.int32)
    assert linear_sparse_kl(problem.hidden, problem.weight, empty.int(), empty, zero, silent).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arwkv_kernels.head_product.ROWS_PER_BLOCK", 7)
    problem = make_problem()
    low = Problem(
        problem.hidden.detach().to(dtype).requires_grad_(),
        problem.weight.detach().to(dtype).requires_grad_(),
        problem.teacher_TV,
        problem.counts,
    )
    loss = low.loss()
    assert loss.dtype == torch.float32
    expected = low.dense_losses("bucket", 1.0)
    torch.testing.assert_close(loss.double(), expected.sum() / T, rtol=1e-5, atol=1e-6)
    leaves = (low.hidden, low.weight)
    wanted = torch.autograd.grad(expected.sum() / T, leaves)
    for got, want in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=8e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    tail=st.sampled_from(["bucket", "drop"]),
    token_chunk=st.integers(1, 10),
)
def test_ragged_counts_of_every_kind(counts: list[int], tail: str, token_chunk: int) -> None:
    problem = make_problem(counts=counts, vocabulary=9)
    torch.testing.assert_close(problem.loss(tail=tail, token_chunk=token_chunk), problem.dense_losses(tail, 1.0).mean())


def test_memory_stays_at_one_chunk_of_logits() -> None:
    """The sum of live allocations, as the profiler reports them, never reaches the whole [T, V]."""
    tokens, vocabulary = 512, 4096
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 16, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, 16, generator=generator)
    ids = torch.arange(8).repeat(tokens)
    logprobs, tail = torch.full((tokens * 8,), -3.0), torch.full((tokens,), 0.5).log()

    def step() -> None:
        linear_sparse_kl(hidden, weight, ids, logprobs, torch.full((tokens,), 8), tail, token_chunk=16).backward()

    assert allocated_peak_bytes(step) < 16 * vocabulary * 4 * 1.5 + 40 * ids.numel() * 4
    assert (
        allocated_peak_bytes(lambda: (hidden @ weight.T).log_softmax(-1).sum().backward()) > 2 * tokens * vocabulary * 4
    )


def test_a_trained_half_precision_head_needs_its_fp32_gradient_and_little_more() -> None:
    tokens, vocabulary, width = 16, 32_000, 64
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(n, width, generator=generator).bfloat16().requires_grad_() for n in (tokens, vocabulary)]
    ids, logprobs = torch.arange(8).repeat(tokens), torch.full((tokens * 8,), -3.0)
    counts, tail = torch.full((tokens,), 8), torch.full((tokens,), 0.5).log()

    def step() -> None:
        torch.autograd.grad(linear_sparse_kl(*leaves, ids, logprobs, counts, tail, token_chunk=1), leaves)

    before = head_product.ROWS_PER_BLOCK
    head_product.ROWS_PER_BLOCK = 1024
    try:
        assert allocated_peak_bytes(step) < 1.6 * vocabulary * width * 4
    finally:
        head_product.ROWS_PER_BLOCK = before


def test_without_gradients_no_product_is_made_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()
    losses = problem.loss(reduction="sum").detach()
    for product in ("times_head", "accumulate_weight_gradient"):
        monkeypatch.setattr(sparse_kl, product, None)
    with torch.no_grad():
        torch.testing.assert_close(problem.loss(reduction="none").sum(), losses)


def test_a_second_derivative_is_refused() -> None:
    problem = make_problem()
    (gradient,) = torch.autograd.grad(problem.loss() ** 2, problem.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_backward_may_run_twice() -> None:
    problem = make_problem()
    loss = problem.loss()
    first, second = (torch.autograd.grad(3 * loss, problem.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_gradient_of_the_logits_never_passes_through_fp16() -> None:
    """Its entries are near 1/V, which fp16 flushes to zero."""
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert head_product.gradient_dtype(gpu, torch.float16, torch.float32) == torch.float32
    assert head_product.gradient_dtype(gpu, torch.bfloat16, torch.float32) == torch.bfloat16
    assert head_product.gradient_dtype(cpu, torch.bfloat16, torch.float32) == torch.float32


def test_autocast_does_not_lower_the_precision() -> None:
    problem = make_problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = problem.loss()
    assert torch.equal(lowered, problem.loss())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": torch.tensor([1, 2, 1])}, "id 1 is stored twice at position 0"),
        ({"ids": torch.tensor([1, 2, V])}, rf"ids span 1..{V}, but the head has {V} rows"),
        ({"counts": torch.tensor([2])}, "counts sum to 2"),
        ({"counts": torch.tensor([3, 0])}, r"counts \(2,\)"),
        ({"tail": "heads"}, 'tail "heads" is not known'),
        ({"reduction": "max"}, 'reduction "max" is not known'),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"token_chunk": 0}, "token_chunk=0"),
        ({"mask": torch.ones(1)}, r"mask is torch.float32 \(1,\)"),
        ({"hidden": torch.zeros(1, C + 1)}, r"hidden \(1, 9\), weight \(50, 8\)"),
        ({"weight": torch.zeros(V, C, requires_grad=True), "reduction": "none"}, "cannot train the head"),
    ],
)
def test_bad_arguments_are_refused_in_words(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {
        "hidden": torch.zeros(1, C),
        "weight": torch.zeros(V, C),
        "ids": torch.tensor([1, 2, 3]),
        "logprobs": torch.full((3,), -2.0),
        "counts": torch.tensor([3]),
        "tail_logprob": torch.tensor([-1.0]),
    }
    with pytest.raises(ValueError, match=words):
        linear_sparse_kl(**(arguments | change))
