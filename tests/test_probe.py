import json

import numpy as np
import pytest
import torch
from forked import python
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from biasnb.records.sweep import TIE, choose
from biasnb.training import evaluation

PENALTIES = evaluation.PENALTIES


@pytest.fixture
def clusters():
    def make(n, layers=2, seed=0):
        g = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % 3
        centres = torch.randn(layers, 3, 5, generator=torch.Generator().manual_seed(99))
        return centres[:, y] + 1.5 * torch.randn(layers, n, 5, generator=g), y

    return make


def digits():
    """Real features whose classes can be told apart without error: (n, 64), and labels."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x), torch.tensor(y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return x[order], y[order]


def network_features():
    """(features (L + 1, n, D), labels) of the three splits: a network at random init on embedded images."""
    from biasnb.config import Config
    from biasnb.training.run import prepare

    data, model = prepare(Config(dataset="leaves", mixer="convmixer", depth=2, width=32, labelled=500))
    return [evaluation.layer_features(model, split) for split in (data.train, data.val, data.test)], len(data.classes)


def whitened(x):
    mean, matrix = evaluation.whitening(x.double())
    return (x.double() - mean) @ matrix


def objective(w, x, y, penalty):
    """Mean cross-entropy + penalty/2 * |W|^2 in numpy."""
    logits = x @ w[:, :-1].T + w[:, -1]
    top = logits.max(1)
    entropy = np.log(np.exp(logits - top[:, None]).sum(1)) + top - logits[np.arange(len(y)), y]
    return entropy.mean() + penalty / 2 * (w[:, :-1] ** 2).sum()


@pytest.mark.parametrize("features", ["clusters", "digits", "network"])
def test_logistic_regression_reaches_the_optimum_of_scikit_learn_at_every_penalty(features, clusters):
    if features == "clusters":
        x, y = clusters(300)
        x = x[0]
    elif features == "digits":
        x, y = (part[:600] for part in digits())
    else:
        ((x, y), *_), _ = network_features()
        x = x[2]
    x, classes = whitened(x), int(y.max()) + 1
    ours = evaluation.fit_logistic(x, y, classes).numpy()
    x, y = x.numpy(), y.numpy()
    for penalty, w in zip(PENALTIES, ours, strict=True):
        theirs = LogisticRegression(C=1 / (len(y) * penalty), tol=1e-10, max_iter=20_000).fit(x, y)
        best = objective(np.column_stack([theirs.coef_, theirs.intercept_]), x, y, penalty)
        assert abs(objective(w, x, y, penalty) - best) < 1e-6


def test_whitening_keeps_what_is_weak_weak_and_makes_what_is_strong_equal():
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(5000, 1, generator=g, dtype=torch.float64)
    x = shared + 0.1 * torch.randn(5000, 8, generator=g, dtype=torch.float64)
    x[:, 7] = x[:, 6] * (1 + 1e-7 * torch.randn(5000, generator=g, dtype=torch.float64))
    z = whitened(x)
    covariance = z.T @ z / len(z)
    variance = torch.linalg.eigvalsh(whitened(x * torch.arange(1, 9) + 5).T.cov())
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-9)
    assert torch.allclose(covariance.diagonal().sort().values, variance, rtol=1e-2, atol=1e-9)  # of units and offsets
    assert variance[-1] == pytest.approx(8 / 9, abs=0.02) and variance[0] < 1e-12


def largest_difference(one, other):
    """Between two tables of accuracies, in points."""
    return max(100 * np.abs(np.subtract(one[part], other[part])).max() for part in ("train", "val", "test"))


def test_rounding_noise_in_the_features_changes_no_accuracy_by_half_a_point():
    splits, classes = network_features()
    known, _ = evaluation.linear_probe(*splits, classes)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        noisy = [(x * (1 + 2e-7 * torch.randn(x.shape, generator=g)), y) for x, y in splits]
        assert largest_difference(evaluation.linear_probe(*noisy, classes)[0], known) <= 0.5


PROBED = """
import json
from biasnb.config import configure
from biasnb.training import evaluation, run
data, net = run.prepare(configure("quick", depth=1))
print(json.dumps(evaluation.probe_network(net, data)[0]))
"""


def test_other_threads_and_instructions_change_no_accuracy_by_half_a_point(root):
    """Features included: of a whole network, on the data of profile quick."""
    known = json.loads(python(root, "-c", PROBED))
    for other in ({"OMP_NUM_THREADS": "2"}, {"ATEN_CPU_CAPABILITY": "avx2"}):
        found = json.loads(python(root, "-c", PROBED, **other))
        assert largest_difference(found, known) <= 0.5, other
        assert abs(choose([found]).mean(found) - choose([known]).mean(known)) <= 0.005, other


def test_the_table_and_the_bits_say_the_same(clusters):
    train, val, test = clusters(300), clusters(90, seed=1), clusters(90, seed=2)
    table, correct = evaluation.linear_probe(train, val, test, 3)
    assert table["penalties"] == sorted(table["penalties"]) and len(table["penalties"]) <= 8
    assert correct.shape == (2, 90) and correct.dtype == np.uint8
    for layer, row in enumerate(table["test"]):
        for place, accuracy in enumerate(row):
            assert (correct[layer] >> place & 1).mean() == pytest.approx(accuracy)


def test_layer_and_penalty_are_chosen_on_validation_never_on_test(clusters):
    train, val, test = clusters(300), clusters(90, seed=1), clusters(90, seed=2)
    table, _ = evaluation.linear_probe(train, val, test, 3)
    choice = choose([table])
    best = [max(row) for row in table["val"]]
    assert choice.by_layer(table, "val") == pytest.approx(best, abs=TIE) and best[choice.layer] >= max(best) - TIE
    again, _ = evaluation.linear_probe(train, val, (test[0], test[1].flip(0)), 3)
    assert choose([again]) == choice and choice.by_layer(again) != choice.by_layer(table)


def test_an_informative_layer_is_found(clusters):
    train, val, test = (clusters(n, seed=s) for n, s in ((300, 0), (90, 1), (300, 2)))
    for x, _ in (train, val, test):
        x[0] = torch.randn(x[0].shape)
    table, _ = evaluation.linear_probe(train, val, test, 3)
    choice = choose([table])
    assert choice.layer == 1
    assert choice.by_layer(table)[0] < 0.5 < choice.best(table)


def test_constant_features_do_no_harm():
    y = torch.arange(30) % 3
    split = (torch.ones(1, 30, 4), y)
    table, _ = evaluation.linear_probe(split, split, split, 3)
    assert np.allclose(table["test"], 1 / 3, atol=0.01)


def test_knn_agrees_with_scikit_learn(clusters):
    train, test = clusters(200), clusters(100, seed=1)

    def weights(distances):
        return np.exp((1 - distances) / evaluation.TEMPERATURE)

    for layer, accuracy in enumerate(evaluation.knn(train, test, 3, chunk=7)):
        theirs = KNeighborsClassifier(evaluation.NEIGHBOURS, metric="cosine", weights=weights)
        theirs.fit(train[0][layer].numpy(), train[1].numpy())
        assert accuracy == pytest.approx(theirs.score(test[0][layer].numpy(), test[1].numpy()), abs=0.011)


def test_unlabelled_images_are_left_out(images):
    from biasnb.data.datasets import Split

    split = Split(images(6, 4), torch.tensor([0, -1, 2, 1, -1, 0]))
    features, labels = evaluation.pixel_features(split)
    assert features.shape == (1, 4, 48)
    assert labels.tolist() == [0, 2, 1, 0]


def test_the_search_uses_one_thread_whatever_the_process_may_use(monkeypatch, clusters):
    from scipy import optimize
    from threadpoolctl import threadpool_info, threadpool_limits

    minimize, counts = optimize.minimize, set()

    def watched(*given, **named):
        counts.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return minimize(*given, **named)

    monkeypatch.setattr(optimize, "minimize", watched)
    features, labels = clusters(60)
    with threadpool_limits(2, user_api="blas"):
        evaluation.fit_logistic(features[0].double(), labels, 3, [1e-2])
    assert counts == {1}
