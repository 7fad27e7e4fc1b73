"""Checks of notebook 13, the training loop. Each raises an AssertionError that names the likely mistake."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.exercises import require_an_answer
from working_with_text_data.token_shards import IGNORE


def _close(given: float, wanted: float) -> bool:
    """Whether two numbers are the same but for rounding."""
    return math.isclose(given, wanted, rel_tol=1e-4, abs_tol=1e-6)


def _near(given: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    return given.shape == wanted.shape and torch.allclose(given.double(), wanted.double(), rtol=1e-4, atol=1e-6)


def check_descend_once(
    answer: Callable[[float, float, Sequence[float], Sequence[float], float], tuple[float, float]],
) -> None:
    """`descend_once(w, b, xs, ys, rate)`: (w, b) after one step on the mean squared error of w · x + b."""
    given = answer(0.0, 0.0, [0, 2], [1, 5], 0.25)
    require_an_answer(given)
    assert isinstance(given, tuple | list) and len(given) == 2, "return two numbers, the new w and the new b"
    w, b = float(given[0]), float(given[1])

    def is_near(other_w: float, other_b: float) -> bool:
        return _close(w, other_w) and _close(b, other_b)

    assert not is_near(-2.5, -1.5), "the step goes uphill: take rate times the gradient away, do not add it"
    assert not is_near(-10, -6), "that is the gradient: asked for are the new w and b, after the step"
    assert not is_near(5, 3), "you sum over the observations: the loss is their mean, so divide by how many there are"
    assert not is_near(1.25, 0.75), "the derivative of e² is 2 · e: the 2 is missing"
    assert not is_near(1.5, 1.5), "w moves as b does: the derivative by w has a factor x"
    assert not is_near(10, 6), "the rate is not used: the step is rate times the gradient"
    assert is_near(2.5, 1.5), f"from w = b = 0 expected (2.5, 1.5), and you have ({w:g}, {b:g})"
    w, b = map(float, answer(1.0, 2.0, [1, 2, 3], [1, 1, 4], 0.5))
    assert not is_near(1 - 11 / 2, 2 - 6 / 2), "you divide by 2: the mean is over len(xs) observations, here 3"
    wanted_w, wanted_b = 1 - 11 / 3, 2 - 6 / 3  # errors 2, 3, 1: e · x adds up to 11, e to 6, and rate · 2 is 1
    assert _close(w, wanted_w), f"with three observations expected w = {wanted_w:.4f}, and you have {w:.4f}"
    assert _close(b, wanted_b), (
        f"with three observations expected b = {wanted_b:.4f}, and you have {b:.4f}: "
        "both derivatives are taken at the old w and b, before either moves"
    )
    print("descend_once: right")


def check_step_loss(answer: Callable[[list[tuple[Tensor, Tensor]]], float]) -> None:
    """`step_loss(parts)`: the mean loss over all targets of all parts, each (logits, targets)."""
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(n, 7, generator=generator) for n in (3, 5)]
    targets = [torch.tensor([2, IGNORE, IGNORE]), torch.tensor([0, 6, 1, IGNORE, 3])]
    given = answer(list(zip(logits, targets, strict=True)))
    require_an_answer(given)
    value = float(given)
    sums = [
        F.cross_entropy(x, t, ignore_index=IGNORE, reduction="sum").item() for x, t in zip(logits, targets, strict=True)
    ]
    assert not _close(value, (sums[0] / 1 + sums[1] / 4) / 2), (
        "that is the mean of the parts' means: a target in a part with few of them counts too much. "
        "Add up sums, and divide once by all targets"
    )
    assert not _close(value, sum(sums)), "that is the sum: divide by the number of targets of the whole step"
    assert not _close(value, sum(sums) / 8), "you divide by all places: those with IGNORE are not asked for"
    assert not _close(value, sum(sums) / 2), "you divide by the number of parts: divide by the number of targets"
    assert not _close(value, sums[0] / 1 + sums[1] / 4), "the parts' means are added up: add sums, and divide once"
    assert not _close(value, sums[1] / 4), "only the last part is there: add up over all of them"
    wanted = sum(sums) / 5
    assert _close(value, wanted), f"expected {wanted:.4f} nats, and you have {value:.4f}"
    nothing = answer([(logits[0], torch.full((3,), IGNORE)), (logits[1], targets[1])])
    assert _close(float(nothing), sums[1] / 4), (
        "a part in which nothing is asked must add nothing (its own mean is 0 / 0): "
        f"expected {sums[1] / 4:.4f}, and you have {float(nothing):.4f}"
    )
    print("step_loss: right")


def check_clip_jointly(answer: Callable[[list[Tensor], float], list[Tensor]]) -> None:
    """`clip_jointly(gradients, most)`: the gradients, scaled together to a joint norm of at most `most`."""
    mine = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    given = answer(mine, 1.0)
    require_an_answer(given)
    assert mine[0].item() == 3 and mine[1][0, 1].item() == 4, "the given tensors have changed: return new ones"
    assert isinstance(given, list | tuple) and len(given) == 2, "return a list with as many tensors as were given"
    assert [x.shape for x in given] == [x.shape for x in mine], "each tensor keeps its shape"
    a, b = given[0].item(), given[1][0, 1].item()
    assert not (_close(a, 1) and _close(b, 1)), (
        "each tensor is clipped alone, which turns the direction: one norm over all tensors, one factor for all"
    )
    assert not (_close(a, 3 / 25) and _close(b, 4 / 25)), "the root is missing: the norm of (3, 4) is 5 and not 25"
    assert not (_close(a, 3 / 7) and _close(b, 4 / 7)), (
        "you add up the tensors' norms: add up their squares, and take the root"
    )
    assert not (_close(a, 3) and _close(b, 4)), "nothing was clipped: the joint norm is 5, and at most 1 is allowed"
    assert _close(a, 0.6) and _close(b, 0.8), f"(3, 4) becomes (0.6, 0.8), and you have ({a:g}, {b:g})"
    half = answer([torch.tensor([3.0]), torch.tensor([4.0])], 2.0)
    assert _close(half[0].item(), 1.2), f"to norm 2, (3, 4) becomes (1.2, 1.6): {half[0].item():g} is not 1.2"
    short = answer([torch.tensor([0.3]), torch.tensor([0.4])], 1.0)
    assert _close(short[0].item(), 0.3), (
        f"a gradient of norm 0.5 stays as it is: 0.3 has become {short[0].item():g}. Clipping never stretches"
    )
    free = answer([torch.tensor([3.0]), torch.tensor([4.0])], 0.0)
    assert _close(free[0].item(), 3), f"most = 0 means no limit: 3 has become {free[0].item():g}"
    zero = answer([torch.zeros(2)], 1.0)
    assert bool(zero[0].isfinite().all()), "a gradient of zeros has norm 0, and you divide by it"
    print("clip_jointly: right")


def check_loss_gradient(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`loss_gradient(logits, targets)`: the gradient of the sum of the losses by the logits, without autograd."""
    generator = torch.Generator().manual_seed(1)
    logits, targets = 2 * torch.randn(4, 6, generator=generator), torch.tensor([5, 0, IGNORE, 2])
    mine = logits.clone()
    given = answer(mine, targets.clone())
    require_an_answer(given)
    assert torch.equal(mine, logits), "the logits that were given have changed: work on a new tensor"
    assert isinstance(given, Tensor) and given.shape == logits.shape, "the gradient has the shape of the logits"
    p, asked = logits.softmax(dim=1), targets != IGNORE
    one_hot = F.one_hot(targets.clamp(min=0), 6) * asked.unsqueeze(1)
    wanted = (p - one_hot) * asked.unsqueeze(1)
    assert not _near(given, -wanted), "the sign is turned: it is softmax minus 1 at the target"
    assert not _near(given, p), "that is softmax alone: 1 at each target is taken away"
    assert not _near(given, p * asked.unsqueeze(1)), "that is softmax alone: 1 at each target is taken away"
    wrapped = p.clone()
    wrapped[torch.arange(4), targets.clamp(min=0)] -= 1
    assert not _near(given, p - one_hot) and not _near(given, wrapped), (
        "the third target is IGNORE: nothing is asked there, so its whole row is 0"
    )
    assert not _near(given, wanted / 3), "that is the gradient of the mean: asked for is that of the sum"
    assert not _near(given, wanted / 4), "you divide by the rows: asked for is the gradient of the sum"
    over_tokens = logits.softmax(dim=0)
    over_tokens = (over_tokens - one_hot) * asked.unsqueeze(1)
    assert not _near(given, over_tokens), "softmax runs over the vocabulary, dim=1, and not over the tokens"
    assert _near(given, wanted), "expected softmax(logits) - onehot(target) in each row that is asked, 0 in the others"
    large = answer(torch.tensor([[200.0, 0.0]]), torch.tensor([1]))
    assert bool(large.isfinite().all()), "exp(200) is infinite in float32: use softmax, which takes the largest away"
    print("loss_gradient: right")


def check_first_problem(answer: Callable[[list[float], float], int | None]) -> None:
    """`first_problem(losses, spike)`: the index of the first loss that is not finite or too far above the mean."""
    given = answer([6.0, 5.0, 4.0, 5.5, 9.5, 4.0], 3.0)
    require_an_answer(given)
    assert given != 3, "5.5 is 1.5 above the loss before it, not more than 3: compare with the mean plus spike"
    assert not isinstance(given, bool), "return the index, not whether there is one"
    assert given == 4, f"9.5 is more than 3 above the mean of about 5.7: index 4, and you have {given}"
    slow = answer([6.0] * 5 + [2.0, 5.5], 3.0)
    assert slow is None, (
        "the mean of 6, 6, 6, 6, 6, 2 is still 5.6, and 5.5 is no spike: compare with the running mean, and not with "
        f"the loss before. Expected None, and you have {slow}"
    )
    down = answer([10.0] + [1.0] * 40 + [5.0], 3.0)
    assert down == 41, (
        "after forty losses of 1 the running mean has forgotten the first 10, and 5 is a spike: "
        f"expected 41, and you have {down}. Each new mean is 0.9 · mean + 0.1 · loss"
    )
    for bad in (math.nan, math.inf, -math.inf):
        found = answer([5.0, bad, 5.0], 3.0)
        assert found == 1, (
            f"{bad} at index 1 is a problem, and you have {found}: no comparison with NaN is true, so ask math.isfinite"
        )
    assert answer([math.nan, 5.0], 3.0) == 0, "the first loss may be NaN, too: look at it before it becomes the mean"
    exact = answer([2.0, 5.0], 3.0)
    assert exact is None, f"exactly mean + spike is not *more* than that: expected None, and you have {exact}"
    print("first_problem: right")
