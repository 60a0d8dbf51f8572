import pytest
import torch

from latentae.latents.inspection.traversal import traverse
from tests.latents.conftest import draw_tensors


@pytest.fixture
def latents(kl):
    with torch.no_grad():
        return kl.encode(draw_tensors(1)).latents[0]


def test_each_row_moves_its_channel_alone(kl, latents):
    std = torch.tensor([1.0, 2.0, 0.5, 3.0])
    found = traverse(kl, latents, std, channels=[1, 3], reach=2, steps=5, size=(16, 16))
    assert found.offsets.tolist() == [-2, -1, 0, 1, 2]
    moved = latents.clone()
    moved[3] += 2 * 3.0
    with torch.no_grad():
        expected = kl.decode(moved[None]).sample[0]
    torch.testing.assert_close(found.images[1, 4], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.images[0, 2], found.images[1, 2], rtol=0, atol=1e-5)
    assert found.changes[:, 2].tolist() == [0, 0]
    change = (found.images[1, 4] - found.images[1, 2]).double().square().mean().sqrt().item()
    assert found.changes[1, 4].item() == pytest.approx(change, rel=1e-6)


def test_sensitivity_is_the_slope_of_a_decoder_that_is_linear(kl, latents):
    class Linear(type(kl)):
        def decode(self, z, size=None):
            return type("Output", (), {"sample": z[:, :3] * torch.tensor([2.0, 1.0, 0.0])[:, None, None]})

    kl.__class__ = Linear
    found = traverse(kl, latents, torch.tensor([1.0, 0.5, 1.0, 1.0]))
    # one of three channels changes by 2, or by half of 1: root mean square
    expected = [2 / 3**0.5, 0.5 / 3**0.5, 0, 0]
    assert found.sensitivity.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_channel_that_does_not_vary_changes_nothing(kl, latents):
    found = traverse(kl, latents, torch.tensor([0.0, 1.0, 1.0, 1.0]), steps=3)
    assert found.changes[0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.sensitivity[1] > 0
    assert found.figure().picture.shape[2] == 3
    assert len(found.numbers()["pixel_change"]) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"steps": 4}, "steps is 4"),
        ({"reach": 0}, "reach is 0"),
        ({"channels": [4]}, r"channels are \[4\]"),
        ({"channels": []}, r"channels are \[\]"),
        ({"std": torch.ones(3)}, "3 standard deviations"),
    ],
)
def test_bad_arguments_are_refused(kl, latents, arguments, says):
    with pytest.raises(ValueError, match=says):
        traverse(kl, latents, **{"std": torch.ones(4), **arguments})
