"""The first weights of a decoder from a teacher of another shape."""

import pytest
import torch
import torch.nn.functional as F

from latentae import KLVAE
from latentae.models.adapting import describe_decoder, load_what_fits
from latentae.models.decoder_weights import shared_channels
from latentae.models.decoders import downscale
from tests.models.conftest import make

LEVELS = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}


def random(seed=0, **changes):
    """A model no value of which is what a fresh one has."""
    torch.manual_seed(seed)
    model = make(KLVAE, **{**LEVELS, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def teacher():
    return random(1)


@pytest.mark.parametrize(
    "shape",
    [
        {"decoder_block_out_channels": (8, 8, 16)},
        {"decoder_layers_per_block": 3},
        {"upscale": 2},
        {"upscale": 4},
        {"decoder_layers_per_block": 2, "upscale": 2},
    ],
)
@torch.no_grad()
def test_where_nothing_gets_lost_the_teacher_is_reproduced(shape, teacher, images):
    student = random(2, **shape)
    before = student(images).sample
    load_what_fits(student, teacher)
    sample, expected = student(images).sample, teacher(images).sample
    assert not torch.allclose(before[..., :16, :24], expected, atol=0.1)
    enlarged = F.interpolate(expected, scale_factor=float(student.upscale), mode="nearest")
    torch.testing.assert_close(sample, enlarged, rtol=0, atol=0)
    torch.testing.assert_close(downscale(sample, student.upscale), expected)


def test_channels_are_the_first_of_every_group():
    channels = shared_channels(8, 16, groups=4)
    assert channels.own == tuple(range(8))
    assert channels.teacher == (0, 1, 4, 5, 8, 9, 12, 13)
    grown = shared_channels(16, 8, groups=4)
    assert (grown.own, grown.teacher) == (channels.teacher, channels.own)


@torch.no_grad()
def test_a_narrower_decoder_has_slices(teacher):
    student = random(2, decoder_block_out_channels=(4, 4, 8))
    (report,) = load_what_fits(student, teacher)
    assert str(report) == (
        "decoder [8, 8, 16] -> [4, 4, 8]: the first channels of every normalisation group are kept"
    )
    own, given = student.state_dict(), teacher.state_dict()
    top, low = [0, 1, 4, 5, 8, 9, 12, 13], [0, 2, 4, 6]
    assert torch.equal(own["decoder.conv_in.weight"], given["decoder.conv_in.weight"][top])
    name = "decoder.mid_block.resnets.0.conv1.weight"
    assert torch.equal(own[name], given[name][top][:, top])
    name = "decoder.up_blocks.1.resnets.0.conv_shortcut.weight"  # reads the residual stream
    assert torch.equal(own[name], given[name][low][:, top])
    name = "decoder.up_blocks.1.resnets.0.norm1.weight"
    assert torch.equal(own[name], given[name][top])
    assert torch.equal(own["decoder.conv_out.weight"], given["decoder.conv_out.weight"][:, low])
    for name, value in given.items():
        if not name.startswith("decoder."):
            assert torch.equal(own[name], value), name


@torch.no_grad()
def test_a_shortcut_that_was_the_identity_stays_one(teacher):
    # The two upper levels of the teacher have one width, those of the student have not.
    student = random(2, decoder_block_out_channels=(4, 8, 16))
    load_what_fits(student, teacher)
    shortcut = student.decoder.up_blocks[2].resnets[0].conv_shortcut
    expected = torch.zeros(4, 8)
    expected[range(4), [0, 2, 4, 6]] = 1
    assert torch.equal(shortcut.weight[:, :, 0, 0], expected)
    assert not shortcut.bias.any()


@torch.no_grad()
def test_fewer_blocks_are_the_first(teacher):
    deep = random(1, layers_per_block=2)
    student = random(2, layers_per_block=2, decoder_layers_per_block=1)
    load_what_fits(student, deep)
    for name, value in student.state_dict().items():
        assert torch.equal(value, deep.state_dict()[name]), name
    assert len(student.decoder.up_blocks[0].resnets) == 2


@torch.no_grad()
def test_with_other_channels_of_images_and_latents(teacher, images):
    student = random(2, in_channels=1, out_channels=1, upscale=2, decoder_layers_per_block=2)
    load_what_fits(student, teacher)
    grey = images.mean(dim=1, keepdim=True)
    expected = teacher(grey.expand(-1, 3, -1, -1)).sample.mean(dim=1, keepdim=True)
    torch.testing.assert_close(downscale(student(grey).sample, 2), expected, rtol=1e-4, atol=1e-5)
    student = random(2, latent_channels=6, decoder_block_out_channels=(4, 8, 8), upscale=2)
    load_what_fits(student, teacher)
    weight = student.state_dict()["decoder.conv_in.weight"]
    assert torch.equal(
        weight[:, :4], teacher.state_dict()["decoder.conv_in.weight"][[0, 1, 4, 5, 8, 9, 12, 13]]
    )
    assert not weight[:, 4:].any()


@torch.no_grad()
def test_from_one_upscaling_decoder_to_another(images):
    teacher = random(1, upscale=2)
    assert describe_decoder(teacher) == {"widths": [8, 8, 16], "layers_per_block": 1, "upscale": 2}
    assert describe_decoder(random(1)) is None
    expected = teacher(images).sample
    larger, usual = random(2, upscale=4), random(2)
    load_what_fits(larger, teacher)
    load_what_fits(usual, teacher)
    torch.testing.assert_close(downscale(larger(images).sample, 2), expected)
    torch.testing.assert_close(usual(images).sample, downscale(expected, 2), rtol=1e-4, atol=1e-5)
