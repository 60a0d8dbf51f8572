import pytest
import torch
from torch import nn

from latentae.losses.classifier import LogitDistance, LPIPSWithLogits
from latentae.losses.feature_maps import resize
from latentae.losses.perceptual import LPIPS
from tests.losses.test_perceptual import image_pair


class Means(nn.Module):
    """Logits: twice the mean of each channel, and a third one that is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.scale.weight, 2.0)

    def forward(self, images):
        means = self.scale(images.mean(dim=(2, 3))[..., None])[..., 0]
        return torch.cat([means[:, :2], torch.ones_like(means[:, :1])], dim=1)


def test_the_distance_worked_out_by_hand():
    images = torch.zeros(2, 3, 8, 8)
    reconstruction = images.clone()
    reconstruction[1, 0] = 0.4  # 0.2 of [0, 1], divided by the standard deviation of red
    reconstruction[1, 2] = 1.0  # does not reach a logit
    distance = LogitDistance(Means())(reconstruction, images)
    assert distance.tolist() == pytest.approx([0.0, (2 * 0.2 / 0.229) ** 2 / 3], rel=1e-5)


def test_other_channels_are_rgb_images():
    distance = LogitDistance(Means())
    reconstruction, images = torch.rand(2, 2, 5, 8, 8).unbind()
    (expected,) = distance(reconstruction[:1, :3], images[:1, :3])
    (other,) = distance(reconstruction[:1, 2:], images[:1, 2:])
    torch.testing.assert_close(distance(reconstruction, images)[0], (expected + other) / 2)


def test_the_classifier_is_frozen_and_sees_224_pixels():
    seen = []

    class Watched(Means):
        def forward(self, images):
            seen.append(tuple(images.shape))
            return super().forward(images)

    network = LogitDistance(Watched()).train()
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network(torch.rand(1, 3, 40, 24), torch.rand(1, 3, 40, 24))
    assert seen == [(1, 3, 224, 224)] * 2


def test_gradient_in_float64():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Conv2d(3, 4, 8, 56), nn.Softplus(), nn.Flatten(), nn.Linear(64, 5))
    network = LogitDistance(classifier).double()
    reconstruction = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    network(reconstruction, target).sum().backward()
    assert target.grad is None
    assert torch.autograd.gradcheck(lambda x: network(x, target.detach()), reconstruction)


def test_the_sum_with_lpips(alexnet_trunk):
    reconstruction, images = image_pair()
    reconstruction.requires_grad_()
    logits = LogitDistance(Means())
    both = LPIPSWithLogits(alexnet_trunk, "alex", logits=logits, logits_weight=0.25)
    lpips = LPIPS(alexnet_trunk, "alex")
    value = both(reconstruction, images)
    expected = lpips(reconstruction, images) + 0.25 * logits(reconstruction, images)
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(each.sum(), reconstruction)[0] for each in (value, expected)]
    torch.testing.assert_close(*gradients)
    assert not any(parameter.requires_grad for parameter in both.parameters())


def test_autocast_changes_nothing(alexnet_trunk):
    reconstruction, images = image_pair()
    both = LPIPSWithLogits(alexnet_trunk, "alex", logits=LogitDistance(Means()))
    with torch.autocast("cpu", torch.bfloat16):
        value = both(reconstruction.bfloat16(), images.bfloat16())
    assert torch.equal(value, both(reconstruction.bfloat16().float(), images.bfloat16().float()))


def test_bfloat16_is_the_classifier_s_alone():
    reconstruction, images = image_pair()
    network = LogitDistance(Means(), "bfloat16")
    assert network.classifier.scale.weight.dtype == torch.bfloat16
    exact = LogitDistance(Means())(reconstruction, images)
    found = network(reconstruction, images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    rounding = 2**-8 * network.normalised(resize(images, (224, 224))).abs().mean()
    torch.testing.assert_close(found.sqrt(), exact.sqrt(), rtol=0, atol=4 * float(rounding))
