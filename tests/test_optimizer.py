"""Muon: torch's own as reference, what it updates, and that it can be stacked, stopped and resumed."""

import math
from functools import partial

import pytest
import torch
from test_seeds import alone, apart, die_in_step, jobs_of

from biasnb.config import configure
from biasnb.networks import model
from biasnb.operators import MIXERS
from biasnb.training import loop as train
from biasnb.training import seeds

FIELDS = {"image_size": 8, "width": 8, "heads": 2, "kernel": 3, "depth": 2, "optimizer": "muon"}
STATS = torch.full((3,), 120.0), torch.full((3,), 60.0)
SHAPES = ((6, 6), (6, 6), (4, 12), (12, 4), (16, 4))


def matrices_of(optimizer):
    return optimizer.param_groups[0]["params"]


def updated(make, steps=6):
    """Matrices of SHAPES after some steps of an optimizer on gradients that are always the same; one is never reached."""
    rng = torch.Generator().manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=rng)) for shape in SHAPES]
    optimizer = make(matrices)
    for _ in range(steps):
        for matrix in matrices[1:]:
            matrix.grad = torch.randn(matrix.shape, generator=rng)
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


def ours(matrices):
    rest = {"params": [torch.nn.Parameter(torch.ones(3))], "weight_decay": 0.0}
    return train.Muon([{"params": matrices, "weight_decay": 0.5}, rest], lr=0.02, fused=True)


def torchs(matrices):
    return torch.optim.Muon(matrices, lr=0.02, weight_decay=0.5)


def differences():
    """Largest difference of each matrix between ours and torch's, over the length of a whole update."""
    pairs = zip(updated(ours), updated(torchs), strict=True)
    return [float((one - other).abs().max()) / 0.02 for one, other in pairs]


def test_muon_is_torchs_up_to_the_rounding_of_bfloat16(monkeypatch):
    assert max(differences()) < 0.2
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    assert max(differences()) < 1e-4
    assert float((updated(ours)[2] - updated(ours, 0)[2]).abs().max()) > 0.02


def test_the_singular_values_of_an_update_are_near_one():
    rng = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=rng) for shape in SHAPES]
    for matrix, found in zip(given, train.orthogonalised(given), strict=True):
        assert found.shape == matrix.shape
        values = torch.linalg.svdvals(found.double())
        assert float(values.min()) > 0.6 and float(values.max()) < 1.25
        u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        assert float((u.T @ found.double() @ v.T).diagonal().min()) > 0.6, "the singular vectors stay"


@pytest.mark.parametrize("mixer", MIXERS)
def test_muon_updates_the_linear_maps_inside_blocks_and_adamw_all_else(mixer):
    task = "ar" if mixer == "conv_two_stream" else "bert"
    net = model.build(configure("smoke", mixer=mixer, pretext=task, **FIELDS), STATS)
    optimizer = train.make_optimizer(net, net.cfg)
    names = {p: name for name, p in net.named_parameters()}
    matrices = {names[p] for p in matrices_of(optimizer)}
    others = {names[p] for group in optimizer.param_groups[1:] for p in group["params"]}
    assert matrices | others == {name for name, p in net.named_parameters() if p.requires_grad} and not matrices & others
    assert {"blocks.0.mlp.hidden.weight", "blocks.1.mlp.out.weight"} <= matrices
    assert all(name.startswith("blocks.") and net.get_parameter(name).dim() == 2 for name in matrices)
    assert {"embed.content.weight", "embed.position", "head.weight", "norm.weight"} <= others
    assert not [name for name in matrices if "table" in name or "gate" in name or "norm" in name or "combination" in name]
    assert not [name for name in others if name.startswith("blocks.") and net.get_parameter(name).dim() == 2]
    if mixer == "mixer":
        assert "blocks.0.mix.hidden.weight" in matrices
    decays = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    net.cfg = configure("smoke", mixer=mixer, pretext=task, **{**FIELDS, "optimizer": "adamw"})
    adamw = train.make_optimizer(net, net.cfg)
    assert decays == {names[p]: group["weight_decay"] for group in adamw.param_groups for p in group["params"]}


@pytest.mark.parametrize("mixer", ["igpt", "mixer", "lowrank", "lc_frozen"])
def test_seeds_trained_together_under_muon_are_what_each_is_alone(images, mixer):
    fields = {"mixer": mixer, "optimizer": "muon", "lr": 0.02}
    single, several = jobs_of(images, **fields), jobs_of(images, **fields)
    logs = [alone(job) for job in single]
    for log, other, one, two in zip(logs, train.pretrain_together(several), single, several, strict=True):
        assert apart(two.model, one.model) < 1e-4
        assert [row["loss"] for row in other["history"]] == pytest.approx([row["loss"] for row in log["history"]], rel=1e-4)


@pytest.mark.parametrize("together", [False, True])
def test_killed_under_muon_a_run_goes_on_to_the_same_end(images, tmp_path, monkeypatch, together):
    def trained(jobs):
        return train.pretrain_together(jobs) if together else [alone(job) for job in jobs]

    fields = {"optimizer": "muon", "lr": 0.02, "mixer": "mixer", "n": 2 if together else 1}
    undisturbed = jobs_of(images, tmp_path / "calm", **fields)
    expected = trained(undisturbed)
    die_in_step(monkeypatch, 6, partial(trained, jobs_of(images, tmp_path / "killed", **fields)))
    jobs = jobs_of(images, tmp_path / "killed", **fields)
    found = trained(jobs)
    for job, other, log, wanted in zip(jobs, undisturbed, found, expected, strict=True):
        assert apart(job.model, other.model) == 0.0
        assert [row["loss"] for row in log["history"]] == [row["loss"] for row in wanted["history"]]


@pytest.mark.parametrize("together", [False, True])
def test_under_muon_nothing_is_updated_once_a_number_is_not_finite(images, together):
    jobs = jobs_of(images, n=2, optimizer="muon", mixer="mixer")[: 2 if together else 1]
    optimizers = [train.make_optimizer(job.model, job.cfg) for job in jobs]
    _, optimizer = train.program(jobs[0].cfg, [job.model for job in jobs], optimizers)
    parameters = seeds.trained(optimizer)
    before = [p.detach().clone() for p in parameters]
    for value, numbers in ((math.nan, [math.nan, 1.0]), (1.0, [0.5, 1.0])):  # finite again, and too late
        for p in parameters:
            p.grad = torch.full_like(p, value)
        train.guard(optimizer, torch.tensor(numbers))
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert all(not optimizer.state[p]["momentum_buffer"].any() for p in matrices_of(optimizer))
