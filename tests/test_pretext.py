import pytest
import torch

from biasnb import model, palette, pretext
from biasnb.config import MIXERS, Config
from biasnb.data import Split, generator

STATS = (torch.full((3,), 120.0), torch.full((3,), 60.0))


def network(x, **fields):
    cfg = Config(**{"width": 16, "depth": 2, "kernel": 3, "colours": 8, "image_size": x.shape[1], **fields})
    net = model.build(cfg, STATS, palette.fit(x, 8) if cfg.uses_palette else None)
    torch.nn.init.normal_(net.head.weight)
    return net


FORMS = [("rgb", "rgb"), ("quantised", "rgb"), ("palette", "palette"), ("rgb", "palette"), ("palette", "rgb")]


@pytest.mark.parametrize("mixer", list(MIXERS))
@pytest.mark.parametrize(("seen", "target"), FORMS)
def test_changing_hidden_pixels_changes_no_prediction(images, mixer, seen, target):
    x = images(4, 8)
    net = network(x, mixer=mixer, input=seen, target=target)
    mask = pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))
    hidden = pretext.pixel_mask(mask, 2)[..., None]
    y = torch.where(hidden, images(4, 8, seed=9), x)
    assert not torch.equal(x, y)
    assert torch.equal(net(net.encode(x), mask), net(net.encode(y), mask))
    one, other = pretext.reconstruct(net, x, mask), pretext.reconstruct(net, y, mask)
    assert torch.equal(one, other)


@pytest.mark.parametrize(("seen", "target"), FORMS)
def test_loss_ignores_visible_pixels_as_targets(images, seen, target):
    x = images(4, 8)
    net = network(x, mixer="identity", input=seen, target=target)
    mask = pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))
    hidden = pretext.pixel_mask(mask, 2)[..., None]
    y = torch.where(hidden, x, images(4, 8, seed=9))
    assert torch.equal(pretext.bert_loss(net, x, mask), pretext.bert_loss(net, y, mask))
    z = torch.where(hidden, images(4, 8, seed=9), x)
    assert not torch.equal(pretext.bert_loss(net, x, mask), pretext.bert_loss(net, z, mask))


def test_rgb_loss_is_the_mean_squared_error_of_hidden_standardised_pixels(images):
    x = images(4, 8)
    net = network(x)
    mask = pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))
    with torch.no_grad():
        tokens = net.head(net(net.encode(x), mask))
    total, count = 0.0, 0
    for b, r, c in mask.nonzero().tolist():
        target = ((x[b, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].float() - 120) / 60).flatten()
        total += float((tokens[b, r, c] - target).square().sum())
        count += 12
    assert pretext.bert_loss(net, x, mask).item() == pytest.approx(total / count, rel=1e-5)


def test_reconstruction_keeps_visible_pixels(images):
    x = images(4, 8)
    net = network(x)
    mask = pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))
    filled = pretext.reconstruct(net, x, mask)
    hidden = pretext.pixel_mask(mask, 2)
    assert torch.equal(filled[~hidden], x[~hidden].float())
    assert filled.min() >= 0 and filled.max() <= 255


def test_palette_reconstruction_is_the_posterior_mean(images):
    x = images(2, 8)
    net = network(x, target="palette")
    torch.nn.init.zeros_(net.head.weight)
    filled = pretext.reconstruct(net, x, torch.ones(2, 4, 4, dtype=torch.bool))
    assert torch.allclose(filled, net.palette.colours.mean(0).expand_as(filled), atol=1e-3)


def test_mask_rate_is_the_share_of_hidden_tokens():
    mask = pretext.draw_mask(500, 16, 0.15, generator("cpu", 0))
    assert mask.float().mean().item() == pytest.approx(0.15, abs=0.005)


def test_evaluation_masks_are_the_same_for_every_seed_and_network(images):
    split = Split(images(5, 8), torch.zeros(5))
    cfgs = (Config(image_size=8, seed=s, mixer=m) for s, m in ((0, "mixer"), (5, "igpt")))
    one, other = (pretext.evaluation_masks(split, cfg, "test") for cfg in cfgs)
    assert torch.equal(one, other)


def test_evaluate_does_not_depend_on_the_chunk(images):
    split = Split(images(10, 8), torch.zeros(10))
    net = network(split.images)
    whole, parts = (pretext.evaluate(net, split, "test", chunk) for chunk in (10, 3))
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-5)
    assert whole["psnr"] == pytest.approx(parts["psnr"], rel=1e-5)


def test_baselines_equal_their_slow_loops(images):
    x = images(3, 6).float()
    hidden = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    mean, neighbours, nearest = (fill(x, hidden) for fill in pretext.BASELINES.values())
    for b in range(3):
        seen = [(r, c) for r in range(6) for c in range(6) if not hidden[b, r, c]]
        for r, c in hidden[b].nonzero().tolist():
            assert torch.allclose(mean[b, r, c], torch.stack([x[b, i, j] for i, j in seen]).mean(0), atol=1e-2)
            reach = min(max(abs(r - i), abs(c - j)) for i, j in seen)
            ring = torch.stack([x[b, i, j] for i, j in seen if max(abs(r - i), abs(c - j)) <= reach])
            assert torch.allclose(neighbours[b, r, c], ring.mean(0), atol=1e-2)
            closest = min((r - i) ** 2 + (c - j) ** 2 for i, j in seen)
            ties = [x[b, i, j] for i, j in seen if (r - i) ** 2 + (c - j) ** 2 == closest]
            assert any(torch.equal(nearest[b, r, c], colour) for colour in ties)
        for r, c in seen:
            assert torch.equal(neighbours[b, r, c], x[b, r, c])


def test_baselines_survive_an_image_with_nothing_visible(images):
    x, hidden = images(1, 4).float(), torch.ones(1, 4, 4, dtype=torch.bool)
    for fill in pretext.BASELINES.values():
        assert torch.isfinite(fill(x, hidden)).all()


def test_psnr_of_a_known_error():
    assert pretext.psnr(255.0**2 * 5, 500) == pytest.approx(20.0)
