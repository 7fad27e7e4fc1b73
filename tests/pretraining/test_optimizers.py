"""Optimisers against the singular value decomposition, PyTorch's own Muon, and a closed form."""

from __future__ import annotations

import pytest
import torch

from pretraining.optimizers import (
    GaLore,
    Muon,
    load_optimizer_state,
    make_optimizers,
    optimizer_state,
    orthogonalise,
    state_bytes,
)
from pretraining.schedules import learning_rate_scale, warmup_cosine, warmup_stable_decay
from tests.gpt_model.test_gpt import tiny_gpt
from utils.checkpoints import load_tree, save_tree


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


def test_the_cosine_is_half_a_cosine_down_to_its_floor():
    assert warmup_cosine(0.05, warmup=0.1) == pytest.approx(0.5)
    assert warmup_cosine(0.1, warmup=0.1, floor=0.2) == 1
    assert warmup_cosine(0.55, warmup=0.1, floor=0.2) == pytest.approx(0.6)  # half way between 1 and 0.2
    assert warmup_cosine(1.0, floor=0.2) == pytest.approx(0.2)
    assert warmup_cosine(2.0, floor=0.2) == pytest.approx(0.2)
    # torch's own, a step at a time
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        assert warmup_cosine(step / 50, warmup=0.0, floor=0.1) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_schedules_by_name():
    assert learning_rate_scale("constant", 0.9, 0.1, 0.5, 0.1) == 1
    assert learning_rate_scale("wsd", 0.75, 0.1, 0.5, 0.0) == pytest.approx(0.5)
    assert learning_rate_scale("wsd", 1.0, 0.1, 0.5, 0.25) == pytest.approx(0.25)
    assert learning_rate_scale("cosine", 1.0, 0.1, 0.5, 0.1) == pytest.approx(0.1)


def galore_by_hand(weight, gradients, rank, lr, scale, betas=(0.9, 0.95), eps=1e-6):
    """GaLore's algorithm 2 for a tall matrix, one projection for all steps: Adam on G P, and back by Pᵀ."""
    p = torch.linalg.svd(gradients[0], full_matrices=False)[2][:rank].T  # (columns, rank)
    m = v = torch.zeros(weight.shape[0], rank)
    for t, gradient in enumerate(gradients, 1):
        g = gradient @ p
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        unbiased = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps / (1 - betas[1] ** t) ** 0.5)
        weight = weight - lr * scale * unbiased @ p.T
    return weight


def test_galore_projects_the_matrices_and_keeps_less():
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 32)
    model = torch.nn.ModuleDict({"x": torch.nn.ModuleDict({"h": linear})})  # so that the name holds ".h."
    weight = linear.weight
    start, gradients = weight.detach().clone(), [torch.randn(32, 16) for _ in range(3)]
    optimizers = make_optimizers(model, "galore-adamw", 0.1, 0.1, 0.0, galore=GaLore(rank=4, scale=0.5))
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizers[0].step()
    torch.testing.assert_close(weight.detach(), galore_by_hand(start, gradients, 4, 0.1, 0.5), atol=1e-5, rtol=1e-4)
    assert state_bytes(optimizers) == 4 * (4 * 16 + 2 * 32 * 4)  # the projection, and two moments of (32, 4)


@pytest.mark.parametrize("name", ["galore-adamw", "galore-adafactor"])
def test_a_projection_holds_no_more_memory_than_its_directions(name):
    model = tiny_gpt()
    optimizers = make_optimizers(model, name, 0.1, 0.01, 0.1, galore=GaLore(rank=4, gap=3))
    model(torch.arange(10)[None]).square().mean().backward()
    optimizers[0].step()
    matrices = [v["projector"].ortho_matrix for v in optimizers[0].state.values() if "projector" in v]
    assert matrices
    for matrix in matrices:
        assert matrix.untyped_storage().nbytes() == 4 * matrix.numel()
        assert matrix.is_contiguous()


@pytest.mark.parametrize("name", ["muon", "adamw", "galore-adamw", "galore-adafactor"])
def test_a_stored_state_goes_on_as_if_never_stored(name, tmp_path):
    def train(model, optimizers, seeds):
        for seed in seeds:
            model(torch.arange(seed, seed + 10)[None]).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    def make():
        model = tiny_gpt()
        return model, make_optimizers(model, name, 0.1, 0.01, 0.1, galore=GaLore(rank=4, gap=3))

    model, optimizers = make()
    train(model, optimizers, range(4))
    stored = {"model": model.state_dict(), "optimizers": [optimizer_state(o) for o in optimizers]}
    save_tree(tmp_path / "state", stored)
    train(model, optimizers, range(4, 9))

    other, others = make()
    loaded = load_tree(tmp_path / "state")
    other.load_state_dict(loaded["model"])
    for optimizer, state in zip(others, loaded["optimizers"], strict=True):
        load_optimizer_state(optimizer, state)
    train(other, others, range(4, 9))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'"):
        make_optimizers(tiny_gpt(), "sgd", 0.1, 0.1, 0.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="CUDA only"):
        make_optimizers(tiny_gpt(), "galore-adamw8bit", 0.1, 0.1, 0.0)
    with pytest.raises(ValueError, match="rank must be above 0"):
        GaLore(rank=0)
