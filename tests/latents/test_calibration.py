import copy

import pytest
import torch

from latentae.data import FolderSource, ImageDataset, RandomCrop
from latentae.latents.calibration import calibrate, calibrate_on
from latentae.latents.statistics import LatentStatistics, measure_latents, noise_generators, view_loader
from tests.latents.conftest import batches_of, draw_tensors, make_kl, make_vq

IMAGES = draw_tensors(24)


def of_latents_only(z, config):  # StableDiffusion, StableDiffusionInpaint, DiT, LDM, LDMSuperResolution
    return z * config.scaling_factor


def of_flux(z, config):  # StableDiffusion3, Flux
    return (z - config.shift_factor) * config.scaling_factor


def of_sdxl(z, config):  # StableDiffusionXL
    if config.latents_mean is None or config.latents_std is None:
        return z * config.scaling_factor
    mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
    return (z - mean) * config.scaling_factor / std


PIPELINES = [of_latents_only, of_flux, of_sdxl]


def measured(model, **arguments):
    return measure_latents(model, batches_of(IMAGES, 8), **arguments)


@torch.no_grad()
def outputs(model):
    """Latents as the model has them, as a denoiser sees them, and pixels, of the same noise."""
    generators = noise_generators(0, torch.arange(4))
    raw = model.encode(IMAGES[:4]).latent_dist.sample(generators)
    scaled = model.to_latents(IMAGES[:4], noise_generators(0, torch.arange(4)))
    return raw, scaled, model(IMAGES[:4]).sample, model.decode(raw).sample


def assert_standard(model, *, per_channel=False):
    after = measured(model, scaled=True)
    assert after.global_mean == pytest.approx(0, abs=1e-5)
    assert after.global_std == pytest.approx(1, abs=1e-5)
    if per_channel:
        torch.testing.assert_close(after.std, torch.ones_like(after.std), rtol=0, atol=1e-5)
    return after


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("channels", [4, 16])
def test_every_pipeline_scales_a_kl_vae_as_to_latents_does(per_channel, channels):
    model = make_kl(latents_mean=(1.0,) * 4, latents_std=(2.0,) * 4, shift_factor=3.0)
    if channels == 16:
        torch.manual_seed(0)
        model = type(model)(
            **{**dict(model.config), "latent_channels": 16, "latents_mean": None, "latents_std": None}
        ).eval()
    *_, pixels, drawn = outputs(model)
    calibration = calibrate(model, measured(model), per_channel=per_channel)
    raw, scaled, pixels_after, drawn_after = outputs(model)

    for rule in PIPELINES:
        torch.testing.assert_close(rule(raw, model.config), scaled, rtol=0, atol=1e-6)
    after = assert_standard(model, per_channel=per_channel)
    torch.testing.assert_close(after.mean, torch.zeros_like(after.mean), rtol=0, atol=2e-5)
    assert (pixels_after - pixels).abs().max() < 1e-5
    assert (drawn_after - drawn).abs().max() < 1e-5
    assert torch.equal(model.from_latents(scaled), model.decode(scaled / model.config.scaling_factor).sample)
    assert calibration.remarks == ()
    assert calibration.folded == ("mean and std" if per_channel else "mean")
    assert (calibration.shift_factor, model.config.shift_factor) == (0.0, 0.0)
    assert calibration.scaling_factor == model.config.scaling_factor
    assert (model.config.scaling_factor == 1.0) is per_channel


def test_the_scale_is_by_hand():
    # Channels of mean 10, 20, 30, 40 and standard deviations 1, 1, 5, 5: the variances' mean is 13.
    model = make_kl()
    statistics = LatentStatistics(
        images=2,
        positions=8,
        mean=torch.tensor([10.0, 20.0, 30.0, 40.0], dtype=torch.float64),
        squares=torch.tensor([1.0, 1.0, 25.0, 25.0], dtype=torch.float64) * 8,
        between=torch.ones(4, dtype=torch.float64),
    )
    before = model.encode(IMAGES[:1]).latents
    calibration = calibrate(model, statistics)
    assert calibration.scaling_factor == pytest.approx(13**-0.5)
    after = model.encode(IMAGES[:1]).latents
    expected = before - torch.tensor([10.0, 20.0, 30.0, 40.0])[:, None, None]
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)
    assert str(calibration).startswith("the mean of each channel folded into quant_conv and post_quant_conv")
    assert "scaling_factor 0.27735" in str(calibration)


@pytest.mark.parametrize("quantizer", ["vector", "ema"])
def test_a_vq_models_codes_stay_what_they_were(quantizer):
    model = make_vq(quantizer={"type": quantizer})
    *_, pixels, drawn = outputs(model)
    indices = model.encode_indices(IMAGES)
    assert len(indices.unique()) > 10
    calibrate(model, measured(model))
    raw, scaled, pixels_after, drawn_after = outputs(model)

    assert torch.equal(model.encode_indices(IMAGES), indices)
    assert (pixels_after - pixels).abs().max() < 1e-5
    assert (drawn_after - drawn).abs().max() < 1e-5
    assert (model.from_latents(scaled) - pixels).abs().max() < 1e-5
    for rule in PIPELINES:
        torch.testing.assert_close(rule(raw, model.config), scaled, rtol=0, atol=1e-6)
    after = assert_standard(model)
    torch.testing.assert_close(after.mean, torch.zeros_like(after.mean), rtol=0, atol=2e-5)
    assert model.to_diffusers().config.scaling_factor == model.config.scaling_factor


@pytest.mark.parametrize("missing", [{"use_quant_conv": False, "use_post_quant_conv": False}, {}])
def test_what_cannot_be_folded_stays_in_shift_factor(missing):
    model = make_kl(**missing)
    before = copy.deepcopy(model.state_dict())
    statistics = measured(model)
    calibration = calibrate(model, statistics, fold=bool(missing))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.shift_factor == pytest.approx(statistics.global_mean)
    assert model.config.scaling_factor == pytest.approx(1 / statistics.global_std)
    assert calibration.folded is None
    raw, scaled, *_ = outputs(model)
    torch.testing.assert_close(of_flux(raw, model.config), scaled, rtol=0, atol=1e-6)
    assert_standard(model)
    (remark,) = calibration.remarks
    mean_left = statistics.global_mean / statistics.global_std
    assert "StableDiffusion, SDXL, DiT and LDM pipelines ignore it" in remark
    assert f"{mean_left:+.3f} standard deviations" in remark
    assert of_latents_only(raw, model.config).mean().item() == pytest.approx(mean_left, abs=0.2)


def test_a_quantizer_without_a_table_keeps_its_codes():
    model = make_vq(num_vq_embeddings=16, quantizer={"type": "lfq", "bits": 4})
    statistics = measured(model)
    calibration = calibrate(model, statistics)
    assert calibration.folded is None
    assert "diffusers' VQModel" in calibration.remarks[0]


def test_the_new_numbers_survive_saving_and_from_config(tmp_path):
    model = make_vq()  # made without a scaling_factor, which diffusers remembers as left at its default
    calibrate(model, measured(model))
    assert model.config.scaling_factor != 1.0
    assert type(model).from_config(model.config).config.scaling_factor == model.config.scaling_factor
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.scaling_factor == model.config.scaling_factor


def test_calibrating_again_changes_nothing():
    model = make_kl()
    first = calibrate(model, measured(model))
    second = calibrate(model, measured(model))
    assert second.scaling_factor == pytest.approx(first.scaling_factor, rel=1e-6)
    assert second.statistics.mean.abs().max() < 2e-5


def test_per_channel_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match="per_channel is for KL-VAEs"):
        calibrate_on(make_vq(), None, batch_size=1, per_channel=True)
    with pytest.raises(ValueError, match="which this model lacks"):
        calibrate_on(make_kl(use_quant_conv=False), None, batch_size=1, per_channel=True)


def test_per_channel_is_refused_where_it_cannot_be():
    vq = make_vq()
    with pytest.raises(ValueError, match="per_channel is for KL-VAEs"):
        calibrate(vq, measured(vq), per_channel=True)
    bare = make_kl(use_quant_conv=False, use_post_quant_conv=False)
    with pytest.raises(ValueError, match="which this model lacks"):
        calibrate(bare, measured(bare), per_channel=True)


def test_a_channel_that_does_not_vary():
    model = make_vq()
    with torch.no_grad():
        model.quant_conv.weight[2] = 0
        model.quant_conv.bias[2] = 7
    calibration = calibrate(model, measured(model))
    assert "latent channel(s) [2] do not vary" in calibration.remarks[0]
    assert_standard(model)

    silent = make_kl()
    with torch.no_grad():
        silent.quant_conv.weight[[2, 6]] = 0
        silent.quant_conv.bias[[2, 6]] = torch.tensor([7.0, -60.0])
    before = copy.deepcopy(silent.state_dict())
    with pytest.raises(ValueError, match=r"latent channel\(s\) \[2\] do not vary"):
        calibrate(silent, measured(silent), per_channel=True)
    assert all(torch.equal(value, before[name]) for name, value in silent.state_dict().items())


def test_images_that_do_not_differ_are_refused():
    model = make_vq()
    for images in (torch.zeros(6, 3, 16, 16), IMAGES[:1].expand(6, -1, -1, -1)):
        statistics = measure_latents(model, batches_of(images, 3))
        with pytest.raises(ValueError, match=r"latents of 6 image\(s\) do not vary from one to the other"):
            calibrate(model, statistics)
    with torch.no_grad():
        model.quant_conv.weight.zero_()
    with pytest.raises(ValueError, match="do not vary from one to the other"):
        calibrate(model, measured(model))


def test_statistics_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"of 4 latent channels, but the model has 3"):
        calibrate(make_vq(vq_embed_dim=3), measured(make_kl()))


def test_calibrate_on_takes_the_training_images_as_the_training_sees_them(picture_folder):
    crops = RandomCrop(16, downscale=(1, 1), flip=True)
    dataset = ImageDataset(FolderSource(picture_folder), crops, channels=3, seed=3)
    model, same = make_kl(), make_kl()
    calibration = calibrate_on(model, dataset, batch_size=50, seed=3)
    # 43 epochs of 12 images are the first to have 512 crops.
    assert calibration.statistics.images == 516
    views = view_loader(dataset, batch_size=7, seed=3, fewest_views=516)
    expected = measure_latents(same, views, seed=3)
    torch.testing.assert_close(calibration.statistics.mean, expected.mean, rtol=1e-5, atol=1e-5)
    assert model.config.scaling_factor == pytest.approx(1 / expected.centred_std, rel=1e-5)
    few = calibrate_on(same, dataset, batch_size=50, seed=3, max_images=20, per_channel=True)
    assert (few.statistics.images, few.scaling_factor) == (20, 1.0)
