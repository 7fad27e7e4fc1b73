"""Optimisers against the singular value decomposition, PyTorch's own Muon, and a closed form."""

from __future__ import annotations

import pytest
import torch

from pretraining.optimizers import Muon, make_optimizers, orthogonalise
from pretraining.schedules import warmup_stable_decay
from tests.gpt_model.test_gpt import tiny_gpt


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24), (3, 16, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    m = torch.randn(shape)
    u, _, vt = torch.linalg.svd(m, full_matrices=False)
    o = orthogonalise(m)
    assert o.shape == m.shape
    values = torch.linalg.svdvals(o)
    assert values.min() > 0.5
    assert values.max() < 1.3
    cosine = (o * (u @ vt)).sum((-2, -1)) / (o.norm(dim=(-2, -1)) * (u @ vt).norm(dim=(-2, -1)))
    assert cosine.min() > 0.97  # the direction of U Vᵀ


def test_steps_equal_torch_s_muon():
    torch.manual_seed(0)
    start = torch.randn(24, 8)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    a = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.5)
    b = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True, ns_steps=5)
    for _ in range(3):
        gradient = torch.randn(24, 8)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    # Theirs always computes the rounds in bfloat16, whose numbers have 8 bits of fraction.
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0.01)


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_is_stepped_by_one_group_and_only_matrices_decay(name):
    model = tiny_gpt()
    optimizers = make_optimizers(model, name, 0.1, 0.01, 0.5)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    stepped = [id(p) for group in groups for p in group["params"]]
    assert sorted(stepped) == sorted(id(p) for p in model.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert names == {n for n, p in model.named_parameters() if ".h." in n and n.endswith("weight") and "ln" not in n}
    assert {group["peak_lr"] for group in groups} == {0.1, 0.01}
    before = [p.clone() for p in model.parameters()]
    model(torch.arange(10)[None]).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_schedule_climbs_stays_and_comes_down():
    scale = [warmup_stable_decay(i / 100, warmup=0.1, decay=0.4) for i in range(101)]
    assert scale[0] == 0
    assert scale[5] == pytest.approx(0.5)
    assert all(s == 1 for s in scale[10:61])
    assert scale[80] == pytest.approx(0.5)
    assert scale[100] == 0
    assert warmup_stable_decay(1.5) == 0
