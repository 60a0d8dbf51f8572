"""Normalisation in one shape for all models, and a student that takes its teacher's."""

import pytest
import torch

from latentae.models import KLVAE, Flux2VAE, TinyAutoencoder

SMALL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 2,
}
CHANNELS = {"latents_mean": [0.5, -1.0], "latents_std": [2.0, 4.0], "scaling_factor": 0.5}


def flux2(eps=1e-4):
    model = Flux2VAE(**SMALL, batch_norm_eps=eps).eval()
    model.set_statistics(torch.arange(8.0) / 4, torch.arange(1.0, 9.0))
    return model


def tiny(**config):
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return TinyAutoencoder(latent_channels=2, **widths, **blocks, **config).eval()


def test_the_formula_of_every_model():
    latents = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = KLVAE(**SMALL, scaling_factor=0.25, shift_factor=0.5)
    torch.testing.assert_close(plain.normalise(latents), (latents - 0.5) * 0.25)
    by_channel = KLVAE(**SMALL, **CHANNELS)
    mean, std = (torch.tensor(CHANNELS[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(by_channel.normalise(latents), (latents - mean) * 0.5 / std)
    torch.testing.assert_close(tiny().normalise(latents), latents)
    # Channel c at row i and column j of its patch is channel 4 c + 2 i + j of the batch normalisation.
    patched = flux2()
    expected = torch.empty_like(latents)
    for channel in range(2):
        for row in range(2):
            for column in range(2):
                number = 4 * channel + 2 * row + column
                values = latents[:, channel, row::2, column::2]
                scaled = (values - number / 4) / (number + 1 + 1e-4) ** 0.5
                expected[:, channel, row::2, column::2] = scaled
    torch.testing.assert_close(patched.normalise(latents), expected)
    torch.testing.assert_close(patched.normalise(latents[..., :3, :]), expected[..., :3, :])
    for model in (plain, by_channel, tiny(), patched):
        for part in (latents, latents[..., :3, :3]):
            torch.testing.assert_close(model.denormalise(model.normalise(part)), part)


@pytest.mark.parametrize(
    ("teacher", "config"),
    [
        (KLVAE(**SMALL, scaling_factor=0.25, shift_factor=0.5), (0.25, 0.5, None, None)),
        (KLVAE(**SMALL, **CHANNELS), (0.5, 0.0, [0.5, -1.0], [2.0, 4.0])),
        (tiny(), (1.0, 0.0, None, None)),
        (flux2(), (1.0, 0.0, None, None)),
    ],
)
def test_students_take_the_scale_of_a_teacher(teacher, config, tmp_path):
    student = KLVAE(**SMALL, scaling_factor=7.0, shift_factor=3.0, latents_mean=[1, 2], latents_std=[3, 4])
    student.take_scale(teacher)
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    assert tuple(student.config[name] for name in names) == config
    student.save_pretrained(tmp_path)
    assert tuple(KLVAE.from_pretrained(tmp_path).config[name] for name in names) == config


def test_a_flux2_student_takes_statistics():
    latents = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    student = flux2(eps=1e-2)
    student.bn.running_mean.zero_()
    teacher = flux2()
    student.take_scale(teacher)
    torch.testing.assert_close(student.normalise(latents), teacher.normalise(latents))
    student.take_scale(tiny())
    torch.testing.assert_close(student.normalise(latents), latents)


def test_a_tiny_student_keeps_scaled_latents():
    student = tiny(scaling_factor=3.0, shift_factor=1.0)
    student.take_scale(KLVAE(**SMALL, scaling_factor=0.25, shift_factor=0.5))
    assert (student.config.scaling_factor, student.config.shift_factor) == (1.0, 0.0)
