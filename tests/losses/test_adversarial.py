import math

import pytest
import torch
from torch import nn

from latentae.discriminators import PatchGAN
from latentae.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    R1,
    AdversarialTerms,
    LeCAM,
    adaptive_weight,
    last_layer_gradient,
    squared_slope,
)

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 1.0])


def softplus(value):
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("name", "generator", "discriminator"),
    [
        ("hinge", 0.5, ((0 + 0.5) / 2 + (0 + 2) / 2) / 2),
        (
            "non_saturating",
            (softplus(2) + softplus(-1)) / 2,
            ((softplus(-2) + softplus(-0.5)) / 2 + (softplus(-2) + softplus(1)) / 2) / 2,
        ),
        ("least_squares", (9 + 0) / 2 / 2, ((1 + 0.25) / 2 + (4 + 1) / 2) / 2),
    ],
)
def test_losses_by_hand(name, generator, discriminator):
    loss = ADVERSARIAL_LOSSES[name]
    assert loss.generator(FAKE).item() == pytest.approx(generator)
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(discriminator)


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_the_players_pull_in_opposite_directions(name):
    loss = ADVERSARIAL_LOSSES[name]
    boundary = torch.tensor([loss.boundary], requires_grad=True)
    (wanted,) = torch.autograd.grad(loss.generator(boundary), boundary)
    (as_fake,) = torch.autograd.grad(loss.discriminator(boundary.detach(), boundary), boundary)
    (as_real,) = torch.autograd.grad(loss.discriminator(boundary, boundary.detach()), boundary)
    assert wanted < 0 < as_fake
    # Undecided, the discriminator is drawn as strongly to either side.
    assert as_real.item() == pytest.approx(-as_fake.item())


def test_when_the_terms_begin():
    terms = AdversarialTerms(start_step=10, discriminator_warmup_steps=4)
    assert [terms.discriminator_learns(step) for step in (5, 6, 10)] == [False, True, True]
    assert [terms.autoencoder_learns(step) for step in (6, 9, 10)] == [False, False, True]
    assert AdversarialTerms(start_step=2, discriminator_warmup_steps=4).first_discriminator_step == 0


def test_the_discriminator_learns_now_and_then():
    terms = AdversarialTerms(start_step=4, discriminator_warmup_steps=1, update_every=3)
    assert [step for step in range(12) if terms.discriminator_learns(step)] == [3, 6, 9]
    assert [terms.discriminator_updates(step) for step in (0, 3, 4, 6, 7, 9)] == [0, 0, 1, 1, 2, 2]
    assert [step for step in range(12) if terms.autoencoder_learns(step)] == list(range(4, 12))


def test_the_weight_rises_linearly():
    terms = AdversarialTerms(weight=0.8, start_step=10, ramp_steps=4)
    rising = [terms.weight_at(step) for step in (9, 10, 11, 12, 13, 14, 1000)]
    assert rising == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert [AdversarialTerms(weight=0.8, start_step=10).weight_at(step) for step in (9, 10)] == [0, 0.8]


@pytest.mark.parametrize("crop", [0, 3])
def test_last_layer_gradient_is_autograds(crop):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 3, 3, padding=1).double()
    inputs = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    output = layer(inputs)
    output = output[..., : output.shape[-2] - crop, : output.shape[-1] - crop]
    output_gradient = torch.randn_like(output)
    expected = torch.autograd.grad(output, layer.weight, output_gradient)[0]
    actual = last_layer_gradient(layer, inputs, output_gradient)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_last_layer_gradient_of_half_precision_inputs_is_in_float32():
    layer = nn.Conv2d(2, 3, 3, padding=1)
    gradient = last_layer_gradient(layer, torch.randn(1, 2, 5, 5).bfloat16(), torch.randn(1, 3, 5, 5))
    assert gradient.dtype == torch.float32


def test_adaptive_weight_by_hand():
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(
        5 / 2.0001
    )
    assert adaptive_weight(torch.tensor([3.0]), torch.tensor([0.0]), maximum=7.0).item() == 7.0
    assert adaptive_weight(torch.zeros(3), torch.ones(3)).item() == 0.0
    assert adaptive_weight(torch.zeros(3), torch.ones(3), minimum=0.1).item() == pytest.approx(0.1)


def committed(lecam, *micro_batches, accepted=True):
    for real, fake in micro_batches:
        lecam.observe(torch.tensor(real), torch.tensor(fake))
    lecam.commit(accepted)
    return lecam.averages.tolist()


def test_the_averages_start_at_the_first_step_and_follow_once_a_step():
    lecam = LeCAM(0.1, decay=0.75)
    # Two micro-batches make one step, whose means are 2 and −1.
    assert committed(lecam, ([1.0, 1.0], [0.0, -2.0]), ([2.0, 4.0], [-1.0, -1.0])) == [2.0, -1.0]
    assert committed(lecam, ([6.0], [-3.0])) == [3.0, -1.5]
    assert committed(lecam) == [3.0, -1.5]  # a step in which the discriminator did not learn


def test_the_term_by_hand():
    lecam = LeCAM(0.1)
    real, fake = torch.tensor([2.0, -3.0]), torch.tensor([1.0, -4.0])
    assert lecam(real, fake).item() == 0.0
    committed(lecam, ([0.5], [-1.0]))
    # relu(D(x) + 1)² = 9, 0; relu(½ − D(x̂))² = 0, 20.25
    assert lecam(real, fake).item() == pytest.approx(4.5 + 10.125)


def test_the_gradient_reaches_both_sides_and_not_the_averages():
    lecam = LeCAM(0.1).double()
    committed(lecam, ([0.5], [-1.0]))
    logits = [torch.tensor([2.0, -3.0], dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda real, fake: lecam(real, fake), logits)
    gradients = torch.autograd.grad(lecam(*logits), logits)
    torch.testing.assert_close(gradients[0], torch.tensor([3.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(gradients[1], torch.tensor([0.0, -3.5], dtype=torch.float64))


@pytest.mark.parametrize("accepted", [False, torch.tensor(False)])
def test_a_step_that_was_not_made_is_forgotten(accepted):
    lecam = LeCAM(0.1, decay=0.5)
    assert committed(lecam, ([float("nan")], [float("inf")]), accepted=accepted) == [0.0, 0.0]
    assert not lecam.started
    assert committed(lecam, ([1.0], [3.0])) == [1.0, 3.0]
    assert committed(lecam, ([float("nan")], [1.0]), accepted=accepted) == [1.0, 3.0]
    assert committed(lecam, ([2.0], [3.0])) == [1.5, 3.0]


def test_the_state_goes_on_where_it_was():
    first, second = LeCAM(0.1), LeCAM(0.1)
    committed(first, ([1.0], [2.0]))
    second.load_state_dict(first.state_dict())
    assert committed(first, ([5.0], [0.0])) == committed(second, ([5.0], [0.0])) != [5.0, 0.0]


def test_impossible_decay():
    with pytest.raises(ValueError, match=r"decay is 1\.0"):
        LeCAM(0.1, decay=1.0)


def images(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(*shape, dtype=dtype, generator=generator) * 2 - 1).requires_grad_()


def test_one_logit_an_image():
    """D(x) = ‖x‖² has the slope 2x."""
    x = images(4, 3, 5, 5)
    expected = (2 * x).square().sum(dim=(1, 2, 3)).mean()
    assert squared_slope(x.square().sum(dim=(1, 2, 3)), x).item() == pytest.approx(expected.item(), rel=1e-12)


def test_patches_that_do_not_overlap_are_averaged():
    net = nn.Conv2d(3, 1, 4, stride=4).double()
    x = images(2, 3, 8, 16)
    patches = x.detach().unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
    patches.requires_grad_()
    whole = squared_slope(net(x).square(), x)
    torch.testing.assert_close(whole, squared_slope(net(patches).square().flatten(), patches))


def test_its_gradient_is_that_of_finite_differences():
    """The second derivative, through GroupNorm too, at one weight of every parameter."""
    torch.manual_seed(0)
    net = PatchGAN(3, base_channels=8, num_layers=1).double()
    for parameter in net.parameters():
        parameter.data.mul_(5)
    x = images(2, 3, 16, 16)
    squared_slope(net(x), x).backward()
    for name, parameter in net.named_parameters():
        flat, step = parameter.data.view(-1), 1e-5
        before = flat[0].item()
        values = []
        for shift in (step, -step):
            flat[0] = before + shift
            values.append(squared_slope(net(x), x).item())
        flat[0] = before
        if parameter.grad is None:  # the last bias moves every logit alike
            assert values[0] == pytest.approx(values[1], rel=1e-12), name
            continue
        expected = (values[0] - values[1]) / (2 * step)
        assert parameter.grad.view(-1)[0].item() == pytest.approx(expected, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_float32_and_near(dtype):
    torch.manual_seed(0)
    net = PatchGAN(3, base_channels=16, num_layers=2)
    x = images(2, 3, 32, 32, dtype=torch.float32)
    exact = squared_slope(net(x), x)
    exact.backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    with torch.autocast("cpu", dtype):
        logits = net(x)
    penalty = squared_slope(logits, x)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(exact.item(), rel=0.03)
    scale = 2.0**12  # as a gradient scaler's
    (penalty * scale).backward()
    actual = [p.grad / scale for p in net.parameters() if p.grad is not None]
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).norm() < 0.06 * theirs.norm() + 1e-7


def test_the_loss_scale_leaves_the_penalty_what_it_is():
    """Of value and gradient, whatever the scale, in float64 and in float16."""
    torch.manual_seed(0)
    net = PatchGAN(3, base_channels=8, num_layers=1).double()
    x, found = images(2, 3, 16, 16), []
    for scale in (None, lambda one: one.double() * 2.0**14, lambda one: one.double() / 3):
        net.zero_grad()
        penalty = squared_slope(net(x), x, scale)
        penalty.backward()
        found.append([penalty.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    for scaled in found[1:]:
        torch.testing.assert_close(scaled, found[0], rtol=1e-12, atol=1e-15)


def test_a_lower_scale_helps_a_slope_that_overflows_in_float16():
    """D(x) = 300² x has a gradient that float16 cannot hold, and logits that it can."""
    x = (torch.arange(-8, 8).view(1, 1, 4, 4) / 256).float().requires_grad_()
    layers = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False))
    for layer in layers:
        nn.init.constant_(layer.weight, 300.0)

    def slope(scale):
        with torch.autocast("cpu", torch.float16):
            logits = layers(x)
        assert logits.isfinite().all()
        return squared_slope(logits.float(), x, scale).item()

    assert slope(None) == float("inf")
    assert slope(lambda one: one * 2.0**16) == float("inf")
    assert slope(lambda one: one * 2.0**3) == pytest.approx(300.0**4, rel=1e-3)


def test_lazily():
    r1 = R1(weight=10.0, every=4)
    assert [update for update in range(9) if r1.due(update)] == [0, 4, 8]
    assert r1.factor == 20.0
