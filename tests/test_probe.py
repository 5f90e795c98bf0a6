import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from biasnb.training import evaluation


@pytest.fixture
def clusters():
    def make(n, layers=2, seed=0):
        g = torch.Generator().manual_seed(seed)
        y = torch.arange(n) % 3
        centres = torch.randn(layers, 3, 5, generator=torch.Generator().manual_seed(99))
        return centres[:, y] + 1.5 * torch.randn(layers, n, 5, generator=g), y

    return make


def test_logistic_regression_agrees_with_scikit_learn(clusters):
    x, y = clusters(300)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    w = evaluation.fit_logistic(x, y, 3)
    for layer in range(2):
        for i, penalty in enumerate(evaluation.PENALTIES):
            theirs = LogisticRegression(C=1 / (300 * penalty), tol=1e-8, max_iter=5000).fit(
                x[layer].double().numpy(), y.numpy()
            )
            ours = w[layer, :, i].double().numpy()
            logits = x[layer].double().numpy() @ ours[:-1] + ours[-1]
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            assert np.abs(p - theirs.predict_proba(x[layer].double().numpy())).max() < 5e-3


def test_layer_and_penalty_are_chosen_on_validation_never_on_test(clusters):
    train, val, test = clusters(300), clusters(90, seed=1), clusters(90, seed=2)
    result = evaluation.linear_probe(train, val, test, 3)
    assert result["chosen"]["val"] == max(row["val"] for row in result["layers"])
    shuffled = (test[0], test[1].flip(0))
    again = evaluation.linear_probe(train, val, shuffled, 3)
    assert [r["penalty"] for r in again["layers"]] == [r["penalty"] for r in result["layers"]]
    assert again["chosen"]["layer"] == result["chosen"]["layer"]
    assert result["correct"].float().mean().item() == pytest.approx(result["chosen"]["test"])


def test_an_informative_layer_is_found(clusters):
    train, val, test = (clusters(n, seed=s) for n, s in ((300, 0), (90, 1), (300, 2)))
    for x, _ in (train, val, test):
        x[0] = torch.randn(x[0].shape)
    result = evaluation.linear_probe(train, val, test, 3)
    assert result["chosen"]["layer"] == 1
    assert result["layers"][0]["test"] < 0.5 < result["chosen"]["test"]


def test_constant_features_do_no_harm():
    y = torch.arange(30) % 3
    split = (torch.ones(1, 30, 4), y)
    assert evaluation.linear_probe(split, split, split, 3)["chosen"]["test"] == pytest.approx(1 / 3, abs=0.01)


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
