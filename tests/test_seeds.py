"""Several seeds trained as one program are the networks that each would be alone."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from biasnb.config import ConfigError, configure
from biasnb.data import datasets as data
from biasnb.data import palette
from biasnb.networks import model
from biasnb.operators import MIXERS, TRIO
from biasnb.records.keys import key
from biasnb.records.store import Store
from biasnb.sweep import executor
from biasnb.training import checkpoint, pretext, run, seeds
from biasnb.training import loop as train

TASKS = (("bert", "rgb", "rgb"), ("bert", "palette", "palette"), ("ar", "rgb", "palette"), ("denoise", "rgb", "rgb"),
         ("supervised", "quantised", "rgb"))  # fmt: skip
LOSS, WEIGHTS = 1e-5, 1e-5  # what rounding may change, relative; docs/performance.md
FIELDS = {"image_size": 8, "patch": 2, "width": 8, "heads": 2, "kernel": 3, "depth": 2, "colours": 8, "batch": 16, "steps": 8}


def jobs_of(images, folder=None, n=3, **fields):
    """Jobs as `pretrain_together` takes them, each with images of its own, as seeds have."""
    jobs = []
    for seed in range(n):
        cfg = configure("smoke", **{**FIELDS, **fields}, seed=seed)
        pool = data.Split(images(64, 8, seed), torch.arange(64) % 4)
        noise = data.Data("noise", tuple("abcd"), pool, pool, pool, pool, "f")
        colours = palette.fit(pool.images, cfg.colours) if cfg.uses_palette else None
        net = model.build(cfg, noise.stats(), colours, classes=4)
        kept = folder and checkpoint.Checkpoints(folder / str(seed), {"seed": seed})
        jobs.append(train.Job(cfg, noise, net, kept))
    return jobs


def alone(job):
    return train.pretrain(job.cfg, job.data, job.model, job.checkpoints)


def apart(one, other):
    """Largest relative difference of the parameters of two networks."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-6)) for a, b in pairs)


@pytest.mark.parametrize("mixer", MIXERS)
def test_losses_and_gradients_are_those_of_each_network_alone(images, mixer):
    for task, seen, target in TASKS if mixer in TRIO else TASKS[1:3]:
        try:
            jobs = jobs_of(images, mixer=mixer, pretext=task, input=seen, target=target, depth=1)
        except ConfigError:
            continue
        models = [job.model for job in jobs]
        for net in models:
            torch.nn.init.normal_(net.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
        batches = [train.Batches(job.cfg, job.data.pool).at(0) for job in jobs]
        alone = torch.stack([pretext.LOSSES[task](net, *batch) for net, batch in zip(models, batches, strict=True)])
        stack = seeds.Stack(models, [train.make_optimizer(job.model, job.cfg) for job in jobs], FIELDS["steps"])
        found = stack.losses(batches)
        torch.testing.assert_close(found, alone, rtol=LOSS, atol=LOSS)
        alone.sum().backward()
        found.sum().backward()
        for name, p in stack.net.named_parameters():
            for grad, net in zip([None] * 3 if p.grad is None else p.grad, models, strict=True):
                own = net.get_parameter(name).grad
                assert (grad is None) == (own is None), name
                assert own is None or float((grad - own).norm()) <= 1e-5 * float(own.norm()) + 1e-7, f"{task} {name}"


@pytest.fixture
def compiling():
    """What `seeds.compiled` sets is as it was after a test."""
    names = ((torch._dynamo.config, "suppress_errors"), (torch._functorch.config, "force_non_lazy_backward_lowering"))
    before = [getattr(*name) for name in names]
    yield
    for name, value in zip(names, before, strict=True):
        setattr(*name, value)


def on_a_gpu(program, cfg):
    """The program with the function that gives its losses as a GPU would be given it, but that nothing is generated for it: a
    whole graph, or an error."""
    score = seeds.Scored(program.model) if isinstance(program, seeds.Single) else program.score
    program.score = seeds.compiled(score, cfg.steps, torch.device("cuda"))
    assert program.score is not score
    return program


@pytest.mark.parametrize(("n", "mixer", "task", "colours"), [(1, "convmixer", "bert", "rgb"), (2, "igpt", "ar", "palette")])
def test_the_form_that_a_gpu_compiles_gives_the_same_losses_and_gradients(
    images, monkeypatch, compiling, n, mixer, task, colours
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    monkeypatch.setattr(model.Norm, "forward", torch.nn.RMSNorm.forward)  # as there
    jobs = jobs_of(images, n=n, mixer=mixer, pretext=task, input=colours, target=colours, steps=seeds.COMPILED_STEPS)
    cfg, models = jobs[0].cfg, [job.model for job in jobs]
    optimizers = [train.make_optimizer(job.model, job.cfg) for job in jobs]
    for net in models:
        torch.nn.init.normal_(net.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    batches = [train.Batches(job.cfg, job.data.pool).at(0) for job in jobs]
    found = []
    for change in (lambda program, cfg: program, on_a_gpu):
        program = change(train.program(cfg, models, optimizers)[0], cfg)
        numbers = train.gradients(program, cfg, batches)
        found.append([*numbers, *(p.grad.clone() for p in program.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 5
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_what_cannot_be_compiled_stays_as_it_is(monkeypatch, compiling, way):
    def broken(graph, inputs):
        raise NotImplementedError("no compiler on this machine")

    whole = partial(aot_autograd, fw_compiler=lambda graph, inputs: graph)
    backend = broken if way == "forward" else whole(bw_compiler=broken)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    x = torch.ones(3, requires_grad=True)
    seeds.compiled(lambda x: x * x, seeds.COMPILED_STEPS, torch.device("cuda"))(x).sum().backward()
    assert x.grad.tolist() == [2.0] * 3


def test_every_network_of_a_process_is_compiled_but_not_where_it_does_not_pay(monkeypatch, compiling):
    graphs, cuda = [], torch.device("cuda")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=lambda graph, inputs: graphs.append(1) or graph))
    for width in range(1, 13):
        net = torch.nn.Linear(width, 1)
        seeds.compiled(net, seeds.COMPILED_STEPS, cuda)(torch.ones(1, width))
    assert len(graphs) == 12
    for steps, device in ((seeds.COMPILED_STEPS - 1, cuda), (seeds.COMPILED_STEPS, torch.device("cpu"))):
        assert seeds.compiled(net, steps, device) is net


@pytest.mark.parametrize(("task", "seen", "target"), TASKS)
def test_trained_together_each_is_what_it_is_alone(images, task, seen, target):
    fields = {"mixer": "attn", "pretext": task, "input": seen, "target": target, "augment": "crop", "clip": 0.1}
    single, several = jobs_of(images, **fields), jobs_of(images, **fields)
    logs = [alone(job) for job in single]
    for log, other, one, two in zip(logs, train.pretrain_together(several), single, several, strict=True):
        assert apart(two.model, one.model) < WEIGHTS
        assert [row["step"] for row in other["history"]] == [row["step"] for row in log["history"]]
        for name in ("loss", "lr", "gradient_norm", "weight_norm"):
            expected = [row[name] for row in log["history"]]
            assert [row[name] for row in other["history"]] == pytest.approx(expected, rel=1e-4), name


class Died(BaseException):
    """What stands for a signal in this process: nothing is done on the way out."""


def die_in_step(monkeypatch, number, call):
    """Call what trains, with a state after every step, and let it die in this step."""
    gradients, calls = train.gradients, []

    def die(*given):
        calls.append(1)
        if len(calls) == number:
            raise Died
        return gradients(*given)

    monkeypatch.setenv("BIASNB_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(train, "gradients", die)
        call()


def test_killed_together_they_go_on_together_or_apart_to_the_same_end(images, tmp_path, monkeypatch):
    undisturbed = jobs_of(images, tmp_path / "calm")
    train.pretrain_together(undisturbed)
    for name, again in (("together", train.pretrain_together), ("apart", lambda jobs: [alone(job) for job in jobs])):
        die_in_step(monkeypatch, 6, partial(train.pretrain_together, jobs_of(images, tmp_path / name)))
        assert all(len(list((tmp_path / name / str(seed)).glob("00000005-*"))) == 1 for seed in range(3))
        jobs = jobs_of(images, tmp_path / name)
        again(jobs)
        assert all(apart(one.model, other.model) < WEIGHTS for one, other in zip(jobs, undisturbed, strict=True))


def test_states_take_a_bounded_share_of_the_time_however_many_networks_there_are(images, tmp_path, monkeypatch):
    """A clock that only saving moves, and a step: a second for each network's state, a second for each step."""
    now, saved = [0.0], []
    monkeypatch.setenv("BIASNB_CHECKPOINT_SECONDS", "1.5")
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now[0])
    save, gradients = checkpoint.Checkpoints.save, train.gradients

    def slow_save(self, step, *given):
        now[0] += 1
        saved.append(step)
        save(self, step, *given)

    def slow_step(*given):
        now[0] += 1
        return gradients(*given)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", slow_save)
    monkeypatch.setattr(train, "gradients", slow_step)
    train.pretrain_together(jobs_of(images, tmp_path, n=3, steps=200))
    assert sorted(set(saved)) == [2, 62, 122, 182, 200]  # three seconds are five hundredths of sixty


def test_states_of_different_steps_cannot_go_on_together(images, tmp_path):
    alone(jobs_of(images, tmp_path)[1])
    with pytest.raises(train.Apart, match=r"steps \[0, 8\]"):
        train.pretrain_together(jobs_of(images, tmp_path))


def test_until_a_number_that_is_not_finite_is_looked_at_nothing_is_updated(images, monkeypatch):
    """As on a GPU, where looking takes time: the optimizer is told instead."""
    cfg, net = jobs_of(images)[0].cfg, jobs_of(images)[0].model
    optimizer, before = train.make_optimizer(net, cfg), [p.detach().clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.full_like(p, math.nan)
    train.guard(optimizer, torch.tensor([[math.nan], [1.0]]))
    optimizer.step()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    train.guard(optimizer, torch.tensor([[0.5], [1.0]]))  # finite again, and too late
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


@pytest.fixture
def runs(root, decoded):
    import shutil

    shutil.copytree(decoded, root / "runs/cache")
    return [configure("smoke", mixer="conv", seed=seed, steps=6) for seed in (0, 1, 2)]


def test_records_are_written_for_each_seed_as_if_run_alone(runs, root, monkeypatch):
    together = run.run_together(runs, Store("smoke"))
    monkeypatch.setattr(run, "make_records_together", None)
    assert run.run_together(runs, Store("smoke")) == together  # all there: nothing is trained
    (root / "runs/smoke").rename(root / "runs/together")
    for cfg, record in zip(runs, together, strict=True):
        alone = run.run(cfg, Store("smoke"))
        assert record["key"] == alone["key"] and record["config"] == alone["config"] and record["data"] == alone["data"]
        assert record.pop("seeds_together") == 3 and record.keys() == alone.keys()
        assert record["loss"]["test"] == pytest.approx(alone["loss"]["test"], rel=LOSS)
        assert record["psnr"]["test"] == pytest.approx(alone["psnr"]["test"], abs=1e-3)
    assert not list(root.rglob("*.error")) and not list((root / "runs").rglob("checkpoints/*/*"))


def test_one_that_diverges_leaves_the_others_to_be_trained_alone(runs, root, monkeypatch):
    losses = seeds.Stack.losses
    monkeypatch.setattr(seeds.Stack, "losses", lambda self, batches: losses(self, batches) * torch.tensor([1.0, math.nan, 1.0]))
    records = run.run_together(runs, Store("smoke"))
    assert [record["status"] for record in records] == ["done"] * 3
    assert not any("seeds_together" in record for record in records)


def test_random_networks_that_are_not_trained_are_recorded_one_by_one(runs, root):
    records = run.run_together([replace(cfg, pretext="none") for cfg in runs], Store("smoke"))
    assert [(record["status"], record["steps"], "seeds_together" in record) for record in records] == [("done", 0, False)] * 3


def test_on_a_gpu_configs_that_differ_in_their_seed_are_one_task(runs):
    wanted = {key(cfg): ("run", cfg) for cfg in (*runs, replace(runs[0], mixer="full"))}
    tasks = executor.grouped(wanted, by_seed=True)
    assert [list(task.configs) for task in tasks] == [runs, [replace(runs[0], mixer="full")]]
    assert len(executor.grouped(wanted, by_seed=False)) == len(wanted)
