import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from torch import nn

from latentae.losses.teacher import (
    MatchedLevels,
    captured_outputs,
    decoder_levels,
    feature_distance,
    latent_distance,
    level_widths,
    output_distance,
)
from latentae.models.decoders import downscale


def decoder(widths=(8, 16, 24), block="UpDecoderBlock2D"):
    torch.manual_seed(0)
    return Decoder(
        in_channels=2,
        out_channels=3,
        up_block_types=(block,) * len(widths),
        block_out_channels=widths,
        norm_num_groups=4,
    )


def test_the_distance_of_images_by_hand():
    student = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]]])
    teacher = torch.tensor([[[[0.5, 0.0]]], [[[0.5, -0.5]]]])
    assert output_distance(student, teacher).item() == pytest.approx((0.75 + 0.5) / 2)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_larger_images_are_averaged(larger):
    small = torch.tensor([[[[0.5]]]])
    large = torch.tensor([[[[0.0, 1.0], [1.0, 1.0]]]])  # a mean of 0.75
    pair = (large, small) if larger == "student" else (small, large)
    assert output_distance(*pair).item() == pytest.approx(0.25)


@pytest.mark.parametrize("larger", [1, 2])
def test_hidden_colours_do_not_count(larger):
    """The teacher's alpha weighs the colours of both; alpha itself always counts."""
    # Two pixels: alpha 1 where the colours differ by 0.5, and alpha 0 where they differ by 1.
    teacher = torch.tensor([0.5, 0.5, 0.5, 1.0, 0.0, 0.0, 0.0, -1.0]).view(1, 2, 4).mT[:, :, None]
    student = torch.tensor([0.0, 0.0, 0.0, 0.8, 1.0, 1.0, 1.0, -0.6]).view(1, 2, 4).mT[:, :, None]
    student = student.repeat_interleave(larger, 2).repeat_interleave(larger, 3)
    expected = (3 * 0.5 + 0.2 + 0.4) / 8
    images = torch.zeros_like(student)
    assert output_distance(student, teacher, images=images).item() == pytest.approx(expected)
    assert output_distance(student, teacher).item() == pytest.approx((3 * 0.5 + 0.2 + 3 * 1.0 + 0.4) / 8)


@pytest.mark.parametrize("hidden", [0.9, -0.4])
def test_hidden_colours_of_a_larger_student_do_not_count(hidden):
    """A student that equals the images has no distance from a teacher that equals the smaller images."""
    torch.manual_seed(0)
    images = torch.rand(2, 4, 6, 8, dtype=torch.float64) * 2 - 1
    images[:, 3, ::3] = -1
    images[:, 3, :2, :2] = -1  # nothing of this block is visible
    student = torch.where(images[:, 3:] == -1, hidden, images)
    student[:, 3:] = images[:, 3:]
    teacher = downscale(images, 2, alpha=True)
    assert output_distance(student, teacher, images=images).item() == pytest.approx(0, abs=1e-12)
    # By hand: one block, of which a quarter is opaque and a quarter half visible, the teacher's alpha is 0.5.
    images = torch.zeros(1, 4, 2, 2)
    images[0, 3] = torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    student = images.clone()
    student[0, :3] = torch.tensor([[0.4, -0.2], [hidden, hidden]])
    teacher = torch.tensor([0.1, 0.1, 0.1, 0.0]).view(1, 4, 1, 1)
    mean = (0.4 - 0.5 * 0.2) / 1.5
    expected = (3 * 0.5 * abs(mean - 0.1) + 0.25) / 4
    assert output_distance(student, teacher, images=images).item() == pytest.approx(expected)


def test_the_distance_of_latents_by_hand():
    student, teacher = torch.tensor([[[[0.0, 1.0]]], [[[2.0, 0.0]]]]), torch.zeros(2, 1, 1, 2)
    assert latent_distance(student, teacher).item() == 5 / 4
    with pytest.raises(ValueError, match=r"\[2, 1, 1, 2\], the teacher's \[2, 1, 2, 1\]"):
        latent_distance(student, teacher.mT)


@pytest.mark.parametrize("size", [(5, 4), (4, 8), (6, 6)])
def test_sizes_that_are_no_multiples(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels cannot be averaged to 4x4"):
        output_distance(torch.rand(1, 3, *size), torch.rand(1, 3, 4, 4))


def test_the_distance_of_activations_by_hand():
    # Level 0: errors of 1 against squares of 4, and of 0. Level 1: nothing against something.
    student = [torch.tensor([[[[1.0]]], [[[3.0]]]]), torch.zeros(2, 1, 2, 2)]
    teacher = [torch.tensor([[[[2.0]]], [[[3.0]]]]), torch.full((2, 1, 2, 2), 100.0)]
    assert feature_distance(student, teacher).item() == pytest.approx((0.125 + 1.0) / 2)
    empty = [torch.zeros(1, 1, 2, 2)]
    assert feature_distance(empty, empty).item() == 0
    with pytest.raises(ValueError, match=r"\[1, 1, 2, 2\] and the teacher's \[1, 2, 2, 2\]"):
        feature_distance(empty, [torch.zeros(1, 2, 2, 2)])


def test_a_batch_may_be_split():
    student, teacher = (torch.rand(4, 3, 2, 2, dtype=torch.float64) for _ in range(2))
    whole = feature_distance([student], [teacher])
    halves = [feature_distance([student[i : i + 2]], [teacher[i : i + 2]]) for i in (0, 2)]
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("block", ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])
def test_levels_are_counted_from_the_lowest_resolution(block):
    network = decoder(block=block)
    with captured_outputs(decoder_levels(network, [0, 1, 2])) as seen:
        images = network(torch.rand(2, 2, 4, 6))
        network(torch.rand(1, 2, 2, 2))  # only the first pass counts
    assert images.shape == (2, 3, 16, 24)
    assert [x.shape for x in seen] == [(2, 24, 4, 6), (2, 16, 8, 12), (2, 8, 16, 24)]
    assert level_widths(network, [2, 0]) == [8, 24]
    assert not any(module._forward_hooks for module in network.modules())


def test_what_has_no_such_level():
    with pytest.raises(ValueError, match="no level 3: its decoder has levels 0 to 2"):
        decoder_levels(decoder(), [1, 3])
    with pytest.raises(ValueError, match="a Sequential has no levels"):
        decoder_levels(nn.Sequential(), [0])


def test_only_other_widths_are_projected():
    network = decoder()
    matched = MatchedLevels(network, [0, 1], [24, 5])
    assert {name: p.shape for name, p in matched.named_parameters()} == {
        "projections.1.weight": (5, 16, 1, 1),
        "projections.1.bias": (5,),
    }
    activations = [torch.rand(1, 24, 4, 4), torch.rand(1, 16, 8, 8)]
    first, second = matched(activations)
    assert first is activations[0]
    layer = matched.projections[1]
    by_hand = (
        torch.einsum("oi,bihw->bohw", layer.weight[..., 0, 0], activations[1]) + layer.bias[:, None, None]
    )
    torch.testing.assert_close(second, by_hand)
