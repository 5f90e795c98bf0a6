import pytest
import torch
import torch.nn.functional as F

from biasnb.config import Config, ConfigError
from biasnb.data import palette
from biasnb.data.datasets import Data, Split, generator
from biasnb.networks import embed, model
from biasnb.operators import MIXERS, TRIO
from biasnb.training import evaluation, pretext

STATS = (torch.full((3,), 120.0), torch.full((3,), 60.0))
FORMS = [("rgb", "rgb"), ("quantised", "rgb"), ("palette", "palette"), ("rgb", "palette"), ("palette", "rgb")]
UNORDERED = [name for name in MIXERS if name != "conv_two_stream"]


def network(x, **fields):
    cfg = Config(**{"width": 16, "depth": 2, "kernel": 3, "colours": 8, "image_size": x.shape[1], **fields})
    net = model.build(cfg, STATS, palette.fit(x, 8) if cfg.uses_palette else None, classes=5)
    torch.nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    return net.requires_grad_(False)


def raster(grid):
    """(H, W): the place of every token in raster order."""
    return torch.arange(grid**2).view(grid, grid)


# ---- masked tokens ------------------------------------------------------------------------------------------------


HIDDEN = [(mixer, *form, "none") for mixer in UNORDERED for form in FORMS]
HIDDEN += [(mixer, "rgb", "rgb", kind) for mixer in TRIO for kind in ("pixels", "patches", "in_patch")]


@pytest.mark.parametrize(("mixer", "seen", "target", "kind"), HIDDEN)
def test_changing_hidden_pixels_changes_no_prediction(images, mixer, seen, target, kind):
    x, other = images(4, 8), images(4, 8, seed=9)
    net = network(x, mixer=mixer, input=seen, target=target, permute=kind)
    mask = pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))
    hidden = net.restore(pretext.pixel_mask(mask, 2))[..., None]
    assert torch.equal(hidden[..., 0], pretext.predicted_pixels(net, x, mask))
    y = torch.where(hidden, other, x)
    assert not torch.equal(x, y)
    assert torch.equal(net(net.encode(net.arrange(x)), mask), net(net.encode(net.arrange(y)), mask))
    one = pretext.reconstruct(net, x, mask)
    assert torch.equal(one, pretext.reconstruct(net, y, mask))
    changed = (pretext.reconstruct(net, torch.where(hidden, x, other), mask) != one).any(3)
    assert changed[hidden[..., 0]].float().mean() > 0.5 or kind == "none"


@pytest.mark.parametrize(("seen", "target"), FORMS)
def test_loss_ignores_visible_pixels_as_targets(images, seen, target):
    x = images(4, 8)
    net = network(x, mixer="identity", input=seen, target=target)
    mask = pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))
    hidden = pretext.pixel_mask(mask, 2)[..., None]
    y = torch.where(hidden, x, images(4, 8, seed=9))
    assert torch.equal(pretext.pixel_loss(net, x, mask), pretext.pixel_loss(net, y, mask))
    z = torch.where(hidden, images(4, 8, seed=9), x)
    assert not torch.equal(pretext.pixel_loss(net, x, mask), pretext.pixel_loss(net, z, mask))


@pytest.mark.parametrize(("task", "permute"), [("bert", "none"), ("bert", "pixels"), ("ar", "none")])
def test_rgb_loss_is_the_mean_squared_error_of_predicted_standardised_pixels(images, task, permute):
    x = images(4, 8)
    net = network(x, permute=permute, pretext=task)
    given = pretext.draw(net.cfg, torch.zeros(4), generator("cpu", 0))
    y = net.arrange(x)
    predicted, errors = net.head(net(net.encode(y), given)), []
    for b, r, c in (given if task == "bert" else torch.ones(4, 4, 4)).nonzero().tolist():
        target = ((y[b, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].float() - 120) / 60).flatten()
        errors.append((predicted[b, r, c] - target).square())
    assert pretext.LOSSES[task](net, x, given).item() == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


@pytest.mark.parametrize("task", ["bert", "ar", "denoise"])
def test_palette_loss_is_the_mean_cross_entropy_of_predicted_pixels(images, task):
    x = images(4, 8)
    net = network(x, input="palette", target="palette", pretext=task)
    given = pretext.draw(net.cfg, torch.zeros(4), generator("cpu", 0))
    logits = net.head(pretext.hidden_grid(net, x, given)).view(4, 4, 4, 4, 8)
    ids = palette.quantise(x, net.palette).long()
    losses = []
    for b, r, c in (given if task == "bert" else torch.ones(4, 4, 4)).nonzero().tolist():
        for slot in range(4):
            chances = logits[b, r, c, slot].softmax(0)
            losses.append(-chances[ids[b, 2 * r + slot // 2, 2 * c + slot % 2]].log())
    assert pretext.LOSSES[task](net, x, given).item() == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@pytest.mark.parametrize("permute", ["none", "pixels"])
def test_reconstruction_keeps_visible_pixels(images, permute):
    x = images(4, 8)
    net = network(x, permute=permute)
    mask = pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))
    filled = pretext.reconstruct(net, x, mask)
    hidden = pretext.predicted_pixels(net, x, mask)
    assert hidden.sum() == 4 * mask.sum()
    assert torch.equal(filled[~hidden], x[~hidden].float())
    assert not torch.equal(filled[hidden], x[hidden].float())
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


@pytest.mark.parametrize(("seen", "mixer"), [("rgb", "gattn"), ("palette", "igpt")])
def test_one_learned_vector_stands_for_hidden_tokens_and_its_absence_is_image_gpts_zero(images, seen, mixer):
    x, mask = images(4, 8), pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))
    for hidden in ("vector", "zero"):
        net = network(x, mixer=mixer, input=seen, hidden=hidden, position="none")
        tokens, _ = net.embed(net.encode(x), mask)
        expected = net.embed.hidden if hidden == "vector" else torch.zeros(16)
        assert torch.equal(tokens[mask], expected.expand(int(mask.sum()), -1))
        assert torch.equal(tokens[~mask], net.embed.content(net.encode(x))[~mask])
    parts = [model.parameters_by_part(network(x, hidden=hidden)) for hidden in ("vector", "zero")]
    assert {name: parts[0][name] - parts[1][name] for name in parts[0]} == {"mixing": 0, "channel": 0, "embedding": 16}


def test_features_do_not_depend_on_what_stands_for_hidden_tokens(images):
    x = images(4, 8)
    net = network(x)
    before = model.features(net, x)
    net.embed.hidden.add_(1.0)
    assert torch.equal(model.features(net, x), before)
    assert torch.equal(model.features(network(x, hidden="zero"), x), before)


def test_the_hidden_vector_starts_at_the_scale_of_positions_is_trained_and_exists_under_masks_alone(images):
    x = images(4, 8)
    cfg = Config(image_size=8, width=1024)
    net = model.build(cfg, STATS)
    assert net.embed.hidden.std().item() == pytest.approx(0.5, rel=0.3)
    torch.nn.init.normal_(net.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    pretext.pixel_loss(net, x, pretext.draw_mask(4, 4, 0.5, generator("cpu", 0))).backward()
    assert net.embed.hidden.grad.norm() > 0
    for task in ("ar", "denoise", "supervised", "none"):
        assert network(x, pretext=task).embed.hidden is None


# ---- the next token -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize(("mixer", "form"), [("convmixer", "entry"), ("igpt", "shift"), ("hyena", "entry"), ("mixer", "entry")])
@pytest.mark.parametrize(("seen", "target"), FORMS)
def test_changing_a_token_and_all_later_ones_changes_no_prediction_up_to_it(images, mixer, form, seen, target, patch):
    x, other = images(2, 8), images(2, 8, seed=9)
    net = network(x, mixer=mixer, input=seen, target=target, patch=patch, pretext="ar")
    assert net.cfg.causal == form
    n = net.cfg.grid**2
    before = net.head(net(net.encode(x))).flatten(1, 2)
    for t in (0, 1, net.cfg.grid - 1, net.cfg.grid, n // 2, n - 1):
        later = pretext.pixel_mask((raster(net.cfg.grid) >= t)[None], patch)[..., None]
        after = net.head(net(net.encode(torch.where(later, other, x)))).flatten(1, 2)
        assert torch.equal(before[:, : t + 1], after[:, : t + 1])
        if t < n - 1:
            assert (before[:, t + 1 :] != after[:, t + 1 :]).any()


@pytest.mark.parametrize("mixer", ["convmixer", "igpt"])
def test_the_first_token_is_predicted_from_its_place_alone(images, mixer):
    x = images(4, 8)
    first = network(x, mixer=mixer, pretext="ar")
    predicted = first.head(first(first.encode(x)))[:, 0, 0]
    assert torch.equal(predicted, predicted[:1].expand_as(predicted))
    assert predicted.abs().min() > 0


KNOWN = raster(4) < 7


@pytest.mark.parametrize("permute", ["none", "pixels"])
@pytest.mark.parametrize("mixer", ["convmixer", "igpt", "conv_two_stream"])
@pytest.mark.parametrize(("seen", "target"), FORMS)
def test_completion_keeps_what_is_known_and_predicts_each_token_from_those_before_it(images, mixer, seen, target, permute):
    x = images(3, 8)
    net = network(x, mixer=mixer, input=seen, target=target, pretext="ar", permute=permute)
    filled = pretext.complete(net, x, KNOWN)
    kept = net.restore(pretext.pixel_mask(KNOWN.expand(3, 4, 4), 2))
    assert torch.equal(filled[kept], x[kept].float())
    one, other = net.arrange(filled), net.arrange(pretext.reconstruct(net, x, None))
    assert torch.allclose(one[:, 2:4, 6:8], other[:, 2:4, 6:8], atol=1e-3)  # token 7: the teacher-forced prediction
    assert torch.allclose(pretext.reconstruct(net, filled, None)[~kept], filled[~kept], atol=1e-2)
    y = torch.where(kept[..., None], x, images(3, 8, seed=9))
    assert torch.equal(pretext.complete(net, y, KNOWN), filled)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("seen", ["rgb", "palette"])
def test_samples_are_colours_of_the_palette_drawn_from_the_predicted_chances(images, seen, patch):
    x = images(1, 8).expand(400, 8, 8, 3)
    net = network(x[:1], input=seen, target="palette", pretext="ar", patch=patch)
    net.head.weight.mul_(0.3)  # chances far from 0 and 1
    grid = net.cfg.grid
    known = raster(grid) < grid**2 - 2
    one, same, other = (pretext.complete(net, x, known, generator("cpu", seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    drawn = one[pretext.pixel_mask(~known[None], patch).expand(400, 8, 8)]
    assert (drawn[:, None] == net.palette.colours).all(2).any(1).all()
    first = one[:, 8 - patch, 8 - 2 * patch]  # the first pixel of the first token that is filled
    frequency = (first[:, None] == net.palette.colours).all(2).float().mean(0)
    chances = net.head(net(net.encode(x[:1].float())))[0, -1, -2].view(patch**2, 8)[0].softmax(0)
    assert (frequency - chances).abs().max() < 0.07 < chances.max() - 1 / 8  # which an even draw would miss


def test_rgb_samples_spread_around_the_prediction(images):
    x = images(1, 8).expand(1000, 8, 8, 3)
    net = network(x, pretext="ar", patch=1)
    net.head.weight.mul_(0.01)  # predictions in the middle of the scale, where nothing is cut off
    known = raster(8) < 63
    mean = pretext.complete(net, x, known)
    assert torch.equal(pretext.complete(net, x, known, generator("cpu", 0)), mean)
    deviation = (pretext.complete(net, x, known, generator("cpu", 0), spread=0.5) - mean)[:, 7, 7]
    assert deviation.std(0).tolist() == pytest.approx([30] * 3, rel=0.1)
    assert deviation.mean(0).tolist() == pytest.approx([0] * 3, abs=3)


# ---- noise and labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seen", "target"), FORMS)
def test_denoising_sees_noisy_pixels_and_predicts_clean_ones(images, seen, target):
    x = (images(4, 8).float() / 4 + 96).byte()  # far enough from 0 and 255 not to be cut off
    net = network(x, input=seen, target=target, pretext="denoise", noise=0.1)
    given = pretext.draw(net.cfg, torch.zeros(4), generator("cpu", 0))
    assert given.shape == (4, 8, 8, 3)
    assert given.std().item() == pytest.approx(1, rel=0.1)
    noisy = pretext.corrupted(net, x, given)
    assert torch.allclose(noisy, x.float() + 0.1 * 60 * given, atol=1e-4)
    predicted = net.head(net(net.encode(noisy)))
    assert not torch.equal(predicted, net.head(net(net.encode(x))))
    if target == "rgb":
        expected = F.mse_loss(predicted, embed.patchify((x.float() - 120) / 60, 2))
    else:
        clean = embed.patchify(palette.quantise(x, net.palette)[..., None], 2).long()
        expected = F.cross_entropy(predicted.view(-1, 8), clean.flatten())
    assert pretext.LOSSES["denoise"](net, x, given).item() == pytest.approx(expected.item(), rel=1e-5)


def test_noise_never_leaves_the_scale_of_pixels(images):
    x = images(4, 8)
    noisy = pretext.corrupted(network(x, pretext="denoise", noise=10.0), x, torch.randn(4, 8, 8, 3))
    assert noisy.min() == 0 and noisy.max() == 255


@pytest.mark.parametrize(("task", "permute"), [("bert", "pixels"), ("ar", "none"), ("denoise", "none")])
def test_psnr_counts_every_pixel_that_is_predicted_and_no_other(images, task, permute):
    split = Split(images(10, 8), torch.zeros(10))
    net = network(split.images, pretext=task, permute=permute)
    given = pretext.evaluation_draw(net.cfg, split, "test")
    filled = pretext.reconstruct(net, split.images, given)
    assert task == "bert" or (filled != split.images).any(3).float().mean() > 0.99
    count = int(given.sum()) * 12 if task == "bert" else 10 * 64 * 3
    expected = pretext.psnr(float((filled - split.images).square().sum()), count)
    found = pretext.evaluate(net, split, "test")
    assert found["psnr"] == pytest.approx(expected, rel=1e-5)
    assert found["loss"] == pytest.approx(pretext.LOSSES[task](net, split.images, given).item(), rel=1e-5)
    assert found["accuracy"] is None


@pytest.mark.parametrize("permute", ["none", "pixels"])
def test_supervised_evaluation_gives_accuracy_and_cross_entropy_of_the_token_mean(images, permute):
    split = Split(images(30, 8), torch.arange(30) % 5)
    net = network(split.images, pretext="supervised", permute=permute)
    hidden = net(net.encode(net.arrange(split.images)))
    logits = hidden.flatten(1, 2).mean(1) @ net.head.weight.T
    found = pretext.evaluate(net, split, "test")
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == split.labels).float().mean().item())
    losses = -logits.softmax(1)[torch.arange(30), split.labels].log()
    assert found["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found["psnr"] is None
    right = Split(split.images, logits.argmax(1))
    assert pretext.evaluate(net, right, "test")["accuracy"] == 1


# ---- evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["bert", "denoise"])
def test_evaluation_draws_are_the_same_for_every_seed_and_network(images, task):
    split = Split(images(5, 8), torch.zeros(5))
    cfgs = (Config(image_size=8, seed=s, mixer=m, pretext=task) for s, m in ((0, "mixer"), (5, "igpt")))
    one, other = (pretext.evaluation_draw(cfg, split, "test") for cfg in cfgs)
    assert torch.equal(one, other)
    assert not torch.equal(one, pretext.evaluation_draw(Config(image_size=8, pretext=task), split, "val"))


def test_evaluation_of_labels_draws_the_labels_and_of_the_next_token_nothing(images):
    split = Split(images(5, 8), torch.arange(5))
    supervised, ar = (Config(image_size=8, pretext=task) for task in ("supervised", "ar"))
    assert torch.equal(pretext.evaluation_draw(supervised, split, "test"), split.labels)
    assert pretext.evaluation_draw(ar, split, "test") is None


@pytest.mark.parametrize("target", ["rgb", "palette"])
@pytest.mark.parametrize("task", list(pretext.LOSSES))
def test_evaluate_does_not_depend_on_the_chunk(images, task, target):
    split = Split(images(10, 8), torch.arange(10) % 5)
    net = network(split.images, pretext=task, target=target)
    whole, parts = (pretext.evaluate(net, split, "test", chunk) for chunk in (10, 3))
    measured = [name for name, value in whole.items() if value is not None]
    assert measured == ["loss", "accuracy" if task == "supervised" else "psnr"]
    assert parts == {name: pytest.approx(value, rel=1e-5) if name in measured else None for name, value in whole.items()}


def test_a_chunk_with_nothing_hidden_is_left_out(images, monkeypatch):
    split = Split(images(4, 8), torch.zeros(4))
    net = network(split.images)
    mask = pretext.evaluation_masks(split, net.cfg, "test")
    mask[2:] = False
    monkeypatch.setattr(pretext, "evaluation_masks", lambda *_: mask)
    found = pretext.evaluate(net, split, "test", chunk=2)
    assert found["loss"] == pytest.approx(pretext.pixel_loss(net, split.images, mask).item(), rel=1e-5)


@pytest.mark.parametrize("task", ["bert", "ar", "denoise", "supervised"])
def test_what_predicts_pixels_is_evaluated_on_some_images_of_a_large_split(images, task, monkeypatch):
    split = Split(images(2 * pretext.RECONSTRUCTED, 8), torch.arange(2 * pretext.RECONSTRUCTED) % 5)
    net = network(split.images, pretext=task)
    given = pretext.evaluation_draw(net.cfg, split, "test")
    found, baselines = pretext.evaluate(net, split, "test"), evaluation.baseline_psnr(data_of(split), net.cfg, "test")
    if task == "supervised":
        right = pretext.classify(net, net.encode(net.arrange(split.images))).argmax(1) == split.labels
        assert found["accuracy"] == pytest.approx(float(right.double().mean()))
        return
    some = Split(split.images[::2], split.labels[::2])
    for module, name in ((pretext, "evaluation_draw"), (evaluation, "evaluation_masks")):
        monkeypatch.setattr(module, name, lambda *_: given if given is None else given[::2])
    assert found == pretext.evaluate(net, some, "test")
    if task == "bert":
        mean = split.images.double().mean((0, 1, 2))
        monkeypatch.setattr(Data, "stats", lambda _: (mean, None))
        assert baselines == pytest.approx(evaluation.baseline_psnr(data_of(some), net.cfg, "test"))


@pytest.mark.parametrize("permute", ["none", "pixels"])
@pytest.mark.parametrize("task", ["bert", "ar", "denoise"])
def test_examples_show_what_the_network_gets_and_what_it_makes_of_it(images, task, permute):
    x = images(3, 8)
    net = network(x, pretext=task, permute=permute)
    given = pretext.draw(net.cfg, torch.zeros(3), generator("cpu", 0))
    shown = {name: torch.from_numpy(array) for name, array in pretext.examples(net, x, given).items()}
    assert all(array.shape == x.shape and array.dtype == torch.uint8 for array in shown.values())
    if task == "denoise":
        noisy = pretext.corrupted(net, net.arrange(x), given)
        assert torch.equal(net.arrange(shown["input"]), noisy.round().byte())
        return
    hidden = given if task == "bert" else (raster(4) >= 8).expand(3, 4, 4)
    hidden = net.restore(pretext.pixel_mask(hidden, 2))
    assert (shown["input"][hidden] == 128).all()
    for array in shown.values():
        assert torch.equal(array[~hidden], x[~hidden])
    assert (shown["reconstruction"][hidden] != 128).any()


# ---- permutations -------------------------------------------------------------------------------------------------


def order(kind, patch, **fields):
    return embed.pixel_order(Config(image_size=16, patch=patch, permute=kind, **fields))


def inside(kind, patch):
    """(256 / p^2, p^2): the pixels of every token, permuted and as they were."""
    both = order(kind, patch), torch.arange(256)
    return [embed.patchify(pixels.view(1, 16, 16, 1), patch).view(-1, patch**2) for pixels in both]


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("kind", ["pixels", "patches", "in_patch"])
def test_a_permutation_moves_every_pixel_to_one_place_the_same_for_all_seeds(kind, patch):
    if kind == "in_patch" and patch == 1:
        with pytest.raises(ConfigError, match="permute: 'in_patch' moves nothing in a patch of 1 pixel"):
            order(kind, patch)
        return
    found = order(kind, patch)
    assert torch.equal(found.sort().values, torch.arange(256))
    assert torch.equal(found, order(kind, patch, seed=7, mixer="mixer"))
    still = (found == torch.arange(256)).float().mean()
    assert still < 0.5


def test_without_a_permutation_images_stay_as_they_are(images):
    x = images(2, 8)
    net = network(x)
    assert net.order is None
    assert net.arrange(x) is x and net.restore(x) is x


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_permuting_patches_moves_whole_patches(patch):
    tokens, plain = inside("patches", patch)
    first = tokens[:, 0].argsort()
    assert torch.equal(tokens[first], plain[plain[:, 0].argsort()])
    assert (tokens == plain).float().mean() < 0.5


@pytest.mark.parametrize("patch", [2, 4])
def test_permuting_inside_patches_moves_all_patches_inside_alike_and_none_away(patch):
    tokens, plain = inside("in_patch", patch)
    places = (tokens[:, :, None] == plain[:, None]).int()
    assert (places.sum(2) == 1).all()
    assert torch.equal(places, places[:1].expand_as(places))
    assert not torch.equal(tokens, plain)


@pytest.mark.parametrize("kind", ["pixels", "patches", "in_patch"])
def test_restore_inverts_arrange(images, kind):
    x = images(3, 8)
    net = network(x, permute=kind)
    assert not torch.equal(net.arrange(x), x)
    assert torch.equal(net.restore(net.arrange(x)), x)
    assert torch.equal(net.arrange(x)[1].view(64, 3), x[1].view(64, 3)[embed.pixel_order(net.cfg)])
    assert torch.equal(net.restore(net.arrange(x[..., 0])), x[..., 0])


# ---- baselines -------------------------------------------------------------------------------------------------------


def test_baselines_equal_their_slow_loops(images):
    x = images(3, 6).float()
    hidden = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    mean, neighbours, nearest = (fill(x, hidden) for fill in evaluation.BASELINES.values())
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


def data_of(split, pool=None):
    pool = split if pool is None else pool
    return Data("noise", ("a",), pool, split, split, pool, "f")


def test_an_image_with_nothing_visible_gets_the_training_mean_in_every_baseline(images):
    split, pool = Split(images(6, 4), torch.zeros(6)), Split(images(9, 4, seed=1) // 2, torch.zeros(9))
    cfg = Config(image_size=4, patch=4, mask_rate=0.95)
    masks = pretext.evaluation_masks(split, cfg, "test")
    hidden = split.images[masks[:, 0, 0]].double()
    error = (hidden - pool.images.double().mean((0, 1, 2))).square().sum()
    expected = dict.fromkeys(evaluation.BASELINES, pytest.approx(pretext.psnr(float(error), hidden.numel()), rel=1e-6))
    assert evaluation.baseline_psnr(data_of(split, pool), cfg, "test", chunk=4) == expected


def test_the_neighbour_mean_does_not_profit_from_images_with_nothing_visible():
    coarse = torch.randint(0, 256, (400, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    smooth = F.interpolate(coarse, 16, mode="bilinear").permute(0, 2, 3, 1).byte()
    found = []
    for rate in (0.75, 0.95):
        cfg = Config(image_size=16, patch=4, mask_rate=rate, batch=64)
        found.append(evaluation.baseline_psnr(data_of(Split(smooth, torch.zeros(400))), cfg, "test"))
    assert found[1]["neighbour_mean"] < found[0]["neighbour_mean"]
    assert found[1]["nearest_visible"] < found[0]["nearest_visible"]


@pytest.mark.parametrize("permute", ["none", "pixels"])
def test_baselines_fill_what_the_network_has_to_predict(images, permute):
    split = Split(images(7, 8), torch.zeros(7))
    net = network(split.images, permute=permute)
    found = evaluation.baseline_psnr(data_of(split), net.cfg, "test", chunk=3)
    mask = pretext.evaluation_masks(split, net.cfg, "test")
    x, hidden = net.arrange(split.images).float(), pretext.pixel_mask(mask, 2)
    for name, fill in evaluation.BASELINES.items():
        error = float((fill(x, hidden) - x).square().sum())
        assert found[name] == pytest.approx(pretext.psnr(error, int(hidden.sum()) * 3), rel=1e-5)


def test_the_ceiling_of_a_palette_is_the_error_of_its_nearest_colours(images):
    x = images(5, 8)
    colours = palette.fit(x, 8)
    nearest = torch.cdist(x.view(-1, 3).float(), colours.colours).amin(1)
    expected = pretext.psnr(float(nearest.square().sum()), 5 * 64 * 3)
    assert evaluation.palette_psnr(x, colours) == pytest.approx(expected, rel=1e-4)


def test_psnr_of_a_known_error():
    assert pretext.psnr(255.0**2 * 5, 500) == pytest.approx(20.0)
