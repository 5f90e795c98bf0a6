import math

import pytest

from biasnb.config import BiasnbError, ConfigError, configure
from biasnb.records.keys import key, search_key
from biasnb.records.store import Store
from biasnb.sweep import Study, executor, manifest
from biasnb.sweep import search as tune


def search(loss):
    """Rates in the order in which they are tried for a loss that is a function of the rate."""
    found = {}
    while (lr := tune.next_rate(found)) is not None:
        found[lr] = loss(lr)
    return list(found)


def test_the_search_goes_down_until_the_loss_rises_and_then_looks_beside_the_best():
    def best_at(best):
        return search(lambda lr: abs(math.log(lr / best)))

    assert best_at(0.01) == [0.03, 0.01, 0.003, 0.017, 0.0058]
    assert best_at(0.001)[:5] == [0.03, 0.01, 0.003, 0.001, 0.0003]
    assert best_at(0.05) == [0.03, 0.01, 0.052, 0.09]
    assert best_at(5.0)[-1] <= tune.HIGHEST and best_at(5.0)[2:4] == [0.052, 0.09]
    assert best_at(1e-6)[:6] == list(tune.LADDER) and min(best_at(1e-6)) >= tune.LOWEST


def test_diverged_rates_are_passed_over():
    tried = search(lambda lr: math.inf if lr > 0.005 else lr)
    assert tried[:4] == [0.03, 0.01, 0.003, 0.001]


def test_the_middle_of_the_plateau_is_chosen_and_not_the_last_rate_before_divergence():
    assert tune.middle({0.09: math.inf, 0.03: 1.0, 0.017: 1.005, 0.01: 1.01, 0.003: 1.5}) == 0.017
    assert tune.middle({0.03: 1.0, 0.01: 1.015}) == 0.01, "of two middle rates the lower"
    assert tune.middle({0.03: 1.03, 0.01: 1.0, 0.003: 1.04}) == 0.01, "no rate beside the best is on its plateau"
    assert tune.middle({0.03: 1.0, 0.01: 1.3, 0.003: 1.01}) == 0.03, "a rate beyond a worse one is not beside the best"


def losses(monkeypatch, store, loss):
    """Instead of training, records whose validation loss is a function of mixer and rate."""
    trained = []

    def train(configs, _):
        for cfg in configs:
            trained.append((cfg.mixer, cfg.seed, cfg.lr))
            value = loss(cfg)
            record = {"status": "diverged"} if value is None else {"status": "done", "loss": {"val": value}}
            kept[key(cfg)] = record

    kept, load = {}, store.load
    monkeypatch.setattr(executor, "train", train)
    monkeypatch.setattr(type(store), "load", lambda self, k: kept[k] if k in kept else load(k))
    return trained


def test_every_operator_gets_a_rate_by_validation_loss_on_a_seed_that_is_not_evaluated(root, monkeypatch):
    store = Store("smoke")
    best = {"conv": 0.01, "attn": 0.003}
    trained = losses(monkeypatch, store, lambda cfg: 1 + abs(math.log(cfg.lr / best[cfg.mixer])))
    study = Study("21_cube", "smoke", {"lr": 0.01}, mixer=["conv", "attn"], seed=[0, 1])
    configs = study.every_combination("mixer", "seed")
    assert {cfg.seed for cfg in configs} == {0, 1}
    records = tune.tune(configs, store)
    assert {r["config"]["mixer"]: r["chosen"] for r in records} == best
    assert {seed for _, seed, _ in trained} == {tune.SEED} and tune.SEED not in {0, 1}
    assert all(row["key"] and row["loss"] for r in records for row in r["rates"])
    count = len(trained)
    assert tune.tune(configs, store) == records
    assert len(trained) == count
    study = Study("21_cube", "smoke", {"lr": "tuned"}, mixer=["conv", "attn"], seed=[0, 1])
    planned = study.plan(study.every_combination("mixer", "seed"))
    assert len(planned.searches) == 2
    assert {(cfg.mixer, cfg.seed): cfg.lr for cfg in planned.configs} == {(m, s): best[m] for m in best for s in (0, 1)}


def test_an_operator_that_always_diverges_is_named(root, monkeypatch):
    store = Store("smoke")
    losses(monkeypatch, store, lambda cfg: None)
    with pytest.raises(BiasnbError, match="diverges for mixer 'conv'"):
        tune.tune([configure("smoke", mixer="conv")], store)


def test_a_rate_that_was_not_searched_is_refused_naming_the_command(root):
    with pytest.raises(ConfigError, match="lr: 'tuned', but mixer 'convmixer' has no searched rate; run `biasnb tune 20_trio`"):
        manifest.parameters("20_trio", {"profile": "smoke", "lr": "tuned"})


def test_the_key_of_a_search_covers_all_but_rate_and_seed():
    cfg = configure("smoke")
    assert search_key(cfg) == search_key(configure("smoke", lr=0.5, seed=3))
    assert search_key(cfg) != search_key(configure("smoke", steps=5)) and search_key(cfg) != key(cfg)
