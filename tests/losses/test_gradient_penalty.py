import pytest
import torch
from torch import nn

from latentae.discriminators import PatchGAN
from latentae.losses.gradient_penalty import R1, squared_slope


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
