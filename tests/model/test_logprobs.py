"""token_logps against -cross_entropy, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dpo_cli.model import logprobs
from dpo_cli.model.logprobs import token_logps

PIECE = logprobs._ROWS
VOCABULARY = 61

# [N] rows asked for, out of how many.
CASES = {
    "one token of one row": (1, [0]),
    "each row once": (5, [0, 1, 2, 3, 4]),
    "rows asked for several tokens": (4, [2, 0, 2, 2, 3, 0]),
    "rows nobody asks for": (7, [1, 5]),
    "exactly one piece": (PIECE, list(range(PIECE))),
    "one row more than a piece": (PIECE + 1, list(range(PIECE + 1))),
    "several pieces, out of order, some twice": (2 * PIECE + 3, [2 * PIECE + 2, PIECE, PIECE - 1, 0, PIECE, 300]),
}


def make(case: str, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, rows, targets, and unequal weights of the results."""
    count, rows = CASES[case]
    random = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(count, VOCABULARY, generator=random, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (len(rows),), generator=random)
    weights = torch.randn(len(rows), generator=random, dtype=torch.float64)
    return logits.to(dtype), torch.tensor(rows), targets, weights


def ours(logits: Tensor, rows: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    result = token_logps(leaf * 1.0, rows, targets)  # not the leaf itself: what it is given is used up
    (result * weights.to(result.dtype)).sum().backward()
    return result.detach(), leaf.grad


def plain(logits: Tensor, rows: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    result = -cross_entropy(leaf[rows], targets, reduction="none")
    (result * weights.to(result.dtype)).sum().backward()
    return result.detach(), leaf.grad


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_value_and_gradient_are_cross_entropys(case: str, dtype: torch.dtype, tolerance: float) -> None:
    given = make(case, dtype)
    value, gradient = ours(*given)
    expected_value, expected_gradient = plain(*given)
    assert value.dtype == gradient.dtype == dtype
    assert value.numpy() == pytest.approx(expected_value.numpy(), rel=tolerance, abs=tolerance)
    assert gradient.numpy() == pytest.approx(expected_gradient.numpy(), rel=tolerance, abs=tolerance)


def test_one_token_asked_for_twice_counts_twice() -> None:
    logits, _, _, weights = make("each row once", torch.float64)
    given = (logits, torch.tensor([3, 0, 3, 3, 4]), torch.tensor([7, 7, 9, 7, 0]), weights)
    assert ours(*given)[1].numpy() == pytest.approx(plain(*given)[1].numpy(), abs=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_logits_give_float32_within_their_own_rounding(case: str) -> None:
    exact, rows, targets, weights = make(case, torch.float64)
    value, gradient = ours(exact.bfloat16(), rows, targets, weights)
    expected_value, expected_gradient = plain(exact, rows, targets, weights)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert (value - expected_value).abs().max() <= 0.05
    # Against the same, already rounded logits, nothing but float32's own error is left.
    rounded_value, rounded_gradient = plain(exact.bfloat16().double(), rows, targets, weights)
    assert value.numpy() == pytest.approx(rounded_value.numpy(), abs=5e-6)
    assert (gradient - rounded_gradient).abs().max() <= 2**-8 * rounded_gradient.abs().max()
    assert (gradient - expected_gradient).abs().max() <= 0.05


def test_a_likely_token_keeps_its_gradient_in_bfloat16() -> None:
    """At p = 0.99995 the gradient is 5e-5 of g: rounding p to bfloat16 first would leave 0."""
    logits = torch.zeros(1, 2, dtype=torch.float64)
    logits[0, 1] = 10.0
    _, gradient = ours(logits.bfloat16(), torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    assert gradient[0].tolist() == pytest.approx([-4.54e-5, 4.54e-5], rel=0.02)


EXTREME = [[1.0, -1.0, 0.0], [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, 3e38])
def test_extreme_logits_stay_finite(dtype: torch.dtype, size: float) -> None:
    logits = (size * torch.tensor(EXTREME, dtype=torch.float64)).to(dtype)
    weights = torch.tensor([1.0, 2.0, -1.0])
    value, gradient = ours(logits, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), weights)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    if size == 1e4:  # beyond, a float does not tell three equal logits from one
        assert value.tolist() == pytest.approx([0.0, -1.0986, -1.0986], abs=1e-3)
        expected = [[0.0, 0.0, 0.0], [-2 / 3, 4 / 3, -2 / 3], [1 / 3, 1 / 3, -2 / 3]]
        assert gradient.flatten().tolist() == pytest.approx([x for row in expected for x in row], rel=5e-3)


def test_an_impossible_token_has_a_large_finite_cost() -> None:
    logits = torch.tensor([[1e4, -1e4]])
    value, gradient = ours(logits, torch.tensor([0]), torch.tensor([1]), torch.ones(1))
    assert value.tolist() == [-2e4]
    assert gradient.tolist() == [[-1.0, 1.0]]


def test_a_second_backward_raises() -> None:
    logits, rows, targets, _ = make("each row once", torch.float32)
    result = token_logps(logits.requires_grad_() * 1.0, rows, targets)
    result.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"^token_logps was differentiated twice: its logits are gone"):
        result.sum().backward()


def test_backward_writes_the_gradient_over_the_logits() -> None:
    logits, rows, targets, weights = make("rows asked for several tokens", torch.float32)
    used_up = logits.clone().requires_grad_() * 1.0
    used_up.retain_grad()
    (token_logps(used_up, rows, targets) * weights).sum().backward()
    expected = plain(logits, rows, targets, weights)[1]
    assert used_up.detach().numpy() == pytest.approx(expected.numpy(), abs=2e-6)


def test_without_gradients_the_logits_are_left_alone() -> None:
    logits, rows, targets, _ = make("each row once", torch.float32)
    before = logits.clone()
    with torch.no_grad():
        token_logps(logits, rows, targets)
    assert torch.equal(logits, before)
