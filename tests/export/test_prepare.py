import pytest
import torch

from latentae.export.prepare import fold_to, read_normalisation
from tests.export.conftest import make_kl, make_vq

MEAN, STD = (1.0, -2.0, 0.5, 0.0), (2.0, 0.5, 1.0, 4.0)


def test_numbers_by_hand():
    own = read_normalisation(make_kl(scaling_factor=0.5, shift_factor=3.0))
    assert (own.shift.tolist(), own.scale.tolist()) == ([3.0] * 4, [0.5] * 4)
    own = read_normalisation(make_kl(scaling_factor=0.5, latents_mean=MEAN, latents_std=STD))
    assert (own.shift.tolist(), own.scale.tolist()) == (list(MEAN), [0.25, 1.0, 0.5, 0.125])
    assert read_normalisation(make_kl(scaling_factor=None)) is None
    own = read_normalisation(make_vq(vq_embed_dim=3, scaling_factor=0.5))
    assert (own.shift.tolist(), own.scale.tolist()) == ([0.0] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    "model",
    [
        make_kl(),
        make_kl(latents_mean=MEAN, latents_std=STD),
        make_kl(use_quant_conv=False, use_post_quant_conv=False),
        make_kl(use_post_quant_conv=False),
        make_vq(shift_factor=0.4),
    ],
    ids=["shift", "by channel", "no convs", "one conv", "vq"],
)
def test_normalised_latents_and_pixels_stay(images, model):
    latents, pixels = model.to_latents(images, torch.manual_seed(0)), model(images).sample
    remark = fold_to(model, 0.1159, 0.3611)
    assert "denoiser sees (latents - 0.1159) * 0.3611" in remark
    raw = model.encode(images).latent_dist.sample(torch.manual_seed(0))
    assert ((raw - 0.1159) * 0.3611 - latents).abs().max() < 1e-5
    assert (model.to_latents(images, torch.manual_seed(0)) - latents).abs().max() < 1e-5
    assert (model(images).sample - pixels).abs().max() < 1e-5


def test_nothing_to_do_leaves_the_architecture_alone():
    model = make_kl(use_quant_conv=False, use_post_quant_conv=False)
    assert fold_to(model, 0.3, 0.7) is None
    assert model.quant_conv is None
    assert "which were added around" in fold_to(model, 0.3, 0.8)


def test_refused():
    with pytest.raises(ValueError, match=r"scale of this model's latents is not known.*latent_stats"):
        fold_to(make_kl(scaling_factor=None), 0.0, 1.0)
    with pytest.raises(ValueError, match="which code is nearest"):
        fold_to(make_vq(latents_mean=MEAN, latents_std=STD), 0.0, 1.0)
