import pytest
import torch
from torch import nn

from latentae import discriminators
from latentae.discriminators import FrozenFeatures, PatchGAN


@pytest.mark.parametrize("norm", ["group", "spectral", "none"])
def test_logits_per_patch(norm):
    logits = PatchGAN(3, base_channels=16, norm=norm)(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 1, 6, 6)
    assert (logits < 0).any()  # no sigmoid: the hinge wants logits of both signs
    assert (logits > 0).any()


def test_a_logit_sees_seventy_pixels():
    discriminator = PatchGAN(1, base_channels=8, norm="none")
    images = torch.randn(1, 1, 128, 128, requires_grad=True)
    logits = discriminator(images)
    (gradient,) = torch.autograd.grad(logits[0, 0, 6, 6], images)
    rows = gradient[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


class Pixels(nn.Module):
    """The trunk of a ``FrozenFeatures``: the images themselves."""

    channels, windows = (3,), ((),)

    def forward(self, images):
        return [images]


def networks():
    """One of every discriminator, each with every normalisation it has."""
    for name in discriminators.__all__:
        member = getattr(discriminators, name)
        if member is FrozenFeatures:
            yield pytest.param(member(trunk=Pixels(), head_channels=16), id=name)
        elif issubclass(member, nn.Module):
            for norm in ("group", "spectral", "none"):
                yield pytest.param(member(3, base_channels=16, norm=norm), id=f"{name} {norm}")


@pytest.mark.parametrize("discriminator", [*networks()])
def test_no_batch_statistics(discriminator):
    """Of any discriminator: they would mix real with fake images, and differ between ranks."""
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in discriminator.modules())
    discriminator.apply(lambda module: module.eval() if "parametri" in type(module).__module__ else None)
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(discriminator(images)[:1], discriminator(images[:1]), rtol=1e-4, atol=1e-6)


def test_only_the_spectral_norm_has_state():
    images = torch.randn(1, 3, 64, 64)
    for norm in ("group", "spectral", "none"):
        discriminator = PatchGAN(3, base_channels=16, norm=norm)
        before = {name: value.clone() for name, value in discriminator.state_dict().items()}
        discriminator(images)
        changed = any(
            not torch.equal(before[name], value) for name, value in discriminator.state_dict().items()
        )
        assert changed == discriminator.forward_has_state


def test_impossible_arguments():
    with pytest.raises(ValueError, match="norm is 'batch'"):
        PatchGAN(norm="batch")
    with pytest.raises(ValueError, match="base_channels is 12"):
        PatchGAN(base_channels=12)
