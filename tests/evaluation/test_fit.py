"""Models beside a teacher, made by hand so that the truth is known."""

import json
import math

import pytest
import torch
from torch import nn

from latentae.evaluation import evaluate as module
from latentae.evaluation.blocks import PROTOCOLS, ImageBlocks
from latentae.evaluation.evaluate import Request, evaluate
from latentae.evaluation.fit import (
    LIMITS,
    LatentPairs,
    advise,
    check_teacher,
    describe_fit,
    scale_remedy,
)
from latentae.evaluation.measuring import Evaluation, Settings
from latentae.evaluation.metrics import psnr, to_images, to_uint8
from latentae.evaluation.models import NamedModel, add_teacher
from latentae.models import KLVAE, Flux2VAE, TinyAutoencoder
from latentae.models.folding import fold_normalisation
from latentae.report.results import Results
from tests.evaluation.conftest import tiny_model

CPU = torch.device("cpu")


def unshuffling_model(scale=1.0):
    """Twelve channels that are the pixels themselves, (image + 1) / 2, in blocks of 2×2; nearly exact."""
    widths = {"encoder_block_out_channels": (8,), "decoder_block_out_channels": (8,)}
    blocks = {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,)}
    layers = {
        "encoder_layers": ["pixel_unshuffle", "conv 12 12"],
        "decoder_layers": ["conv 12 12", "pixel_shuffle"],
    }
    model = TinyAutoencoder(latent_channels=12, scaling_factor=scale, **widths, **blocks, **layers)
    for half in (model.encoder, model.decoder):
        (conv,) = (layer for layer in half.modules() if isinstance(layer, nn.Conv2d))
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    return model.eval()


def conv_of(half):
    return next(layer for layer in half.modules() if isinstance(layer, nn.Conv2d))


def kl_model(seed=0, scale=0.5):
    model = tiny_model("kl", seed)
    model.change_config(scaling_factor=scale)
    return model


@pytest.fixture
def images(source):
    return torch.stack([PROTOCOLS["native"](source.load(index, 3)) for index in range(40)])


@pytest.fixture
def fit_of(source, measures, tmp_path):
    """Measures a model beside a teacher on 40 images, in two blocks."""

    def fit(new, old, autocast=None, **settings):
        models = [NamedModel(n, n, model, autocast) for n, model in (("new", new), ("old", old))]
        check_teacher(models, models[1])
        blocks = ImageBlocks(source, PROTOCOLS["native"], 3)
        blocks.indices = blocks.indices[:40]
        options = Settings(cycle_images=0, **settings)
        evaluation = Evaluation(blocks, measures, options, tmp_path / "work", "", CPU, teacher=models[1])
        evaluation.measure(models)
        assembled = {model.name: evaluation.result(model) for model in models}
        return describe_fit("new", "old", evaluation.fit_result(models[0]), assembled), assembled

    return fit


def test_an_identical_model_fits(fit_of):
    found, assembled = fit_of(kl_model(), kl_model())
    assert (found.verdict, found.bit_equal, found.relative_mse) == ("equal", True, 0)
    assert found.advice == "new: its latents are bit-equal to those of old. Any denoiser of old fits."
    assert found.channels["mean_shift"] == [0] * 4
    assert found.channels["std_ratio"] == [1] * 4
    assert found.channels["correlation"] == pytest.approx([1] * 4)
    for decoded in (found.new_decoder_on_old_latents, found.old_decoder_on_new_latents):
        assert decoded["psnr_loss"].value == 0
        for name in ("psnr", "ssim", "lpips_alex"):
            assert decoded[name] == assembled["old"].metrics[name]


def test_models_in_reduced_precision(fit_of):
    found, assembled = fit_of(kl_model(), kl_model(), autocast=torch.bfloat16)
    assert found.verdict == "equal"
    # What is decoded are float32 latents after scale and shift, so rounding differs a little.
    own = assembled["old"].metrics["psnr"].value
    assert found.old_decoder_on_new_latents["psnr"].value == pytest.approx(own, abs=0.02)


def test_an_encoder_that_got_worse_shows_in_the_old_decoder_alone(fit_of):
    """Both have the same decoder, so that the model's own reconstructions hide nothing."""
    new, old = unshuffling_model(), unshuffling_model()
    with torch.no_grad():
        conv_of(new.encoder).bias += 0.125
    found, assembled = fit_of(new, old)
    own = {name: assembled[name].metrics["psnr"].value for name in ("new", "old")}
    assert own["new"] < own["old"] - 3
    lost = found.old_decoder_on_new_latents["psnr_loss"].value
    assert lost == pytest.approx(own["old"] - own["new"], rel=1e-6)
    assert found.new_decoder_on_old_latents["psnr"].value == own["old"]
    assert found.new_decoder_on_old_latents["psnr_loss"].value == pytest.approx(-lost)


def test_a_fine_tuned_decoder_leaves_the_latents(fit_of):
    new = kl_model()
    torch.nn.init.constant_(new.decoder.conv_out.bias, 0.25)
    found, assembled = fit_of(new, kl_model())
    assert (found.verdict, found.bit_equal) == ("equal", True)
    own = {name: assembled[name].metrics["psnr"].value for name in ("new", "old")}
    assert own["new"] != own["old"]
    assert found.new_decoder_on_old_latents["psnr"].value == own["new"]
    assert found.old_decoder_on_new_latents["psnr"].value == own["old"]
    lost = min(own.values()) - own["new"]
    assert found.new_decoder_on_old_latents["psnr_loss"].value == pytest.approx(lost, abs=1e-9)


def test_another_scale_in_weights_and_config_fits(fit_of):
    new = kl_model()
    fold_normalisation(new, 0.0, 2.0)  # raw latents twice as large
    new.change_config(scaling_factor=0.25)
    found, _ = fit_of(new, kl_model())
    assert found.verdict == "equal"
    assert found.new_decoder_on_old_latents["psnr_loss"].value == pytest.approx(0, abs=1e-3)


def test_a_wrong_scale_alone_is_told_apart_from_another_latent_space(fit_of):
    found, _ = fit_of(unshuffling_model(scale=3.0), unshuffling_model())
    assert found.channels["std_ratio"] == pytest.approx([3] * 12, rel=1e-5)
    assert found.channels["correlation"] == pytest.approx([1] * 12, abs=1e-9)
    assert found.verdict == "other"
    assert "but only because of scale and shift" in found.advice
    assert "scaling_factor" in found.advice


def test_shifted_latents_have_the_shift_that_was_put_in(fit_of, images):
    old, new = unshuffling_model(), unshuffling_model()
    with torch.no_grad():
        conv_of(new.encoder).bias[5] = 0.125
        latents = old.encode(images).latents.double()
    found, _ = fit_of(new, old)
    deviation = latents.std(dim=(0, 2, 3), correction=0)
    assert found.channels["mean_shift"][5] == pytest.approx(0.125 / deviation[5].item(), rel=1e-5)
    others = [value for channel, value in enumerate(found.channels["mean_shift"]) if channel != 5]
    assert others == [0] * 11
    assert found.channels["std_ratio"] == pytest.approx([1] * 12, rel=1e-5)
    assert found.channels["correlation"] == pytest.approx([1] * 12, rel=1e-5)
    assert found.channels["relative_mse"][5] == pytest.approx((0.125 / deviation[5].item()) ** 2, rel=1e-5)
    assert found.relative_mse == pytest.approx(0.125**2 / deviation.square().sum().item(), rel=1e-5)
    assert not found.bit_equal


def test_permuted_channels_do_not_fit(fit_of, images):
    old, new = unshuffling_model(), unshuffling_model()
    order = torch.arange(11, -1, -1)  # also swaps red and blue
    with torch.no_grad():
        conv_of(new.encoder).weight.copy_(conv_of(new.encoder).weight[order])
        conv_of(new.decoder).weight.copy_(conv_of(new.decoder).weight[:, order])
        latents = old.encode(images).latents.double()
        crossed = old.from_latents(new.to_latents(images))
    found, assembled = fit_of(new, old)
    assert assembled["new"].metrics["psnr"].value == pytest.approx(assembled["old"].metrics["psnr"].value)
    assert found.verdict == "other"
    assert "does not fit" in found.advice
    assert "another latent space" in found.advice
    values = latents.transpose(0, 1).flatten(1)
    truth = torch.corrcoef(values)
    expected = [truth[channel, 11 - channel].item() for channel in range(12)]
    assert found.channels["correlation"] == pytest.approx(expected, rel=1e-5)
    variance = values.var(dim=1, correction=0)
    mse = (values - values[order]).square().mean(dim=1)
    assert found.channels["relative_mse"] == pytest.approx((mse / variance).tolist(), rel=1e-5)
    assert found.relative_mse == pytest.approx((mse.sum() / variance.sum()).item(), rel=1e-5)
    across = psnr(to_images(to_uint8(crossed)), images).mean().item()
    assert found.old_decoder_on_new_latents["psnr"].value == pytest.approx(across, rel=1e-6)
    own = assembled["old"].metrics["psnr"].value
    assert found.old_decoder_on_new_latents["psnr_loss"].value == pytest.approx(own - across, rel=1e-5)
    assert own - across > LIMITS["moved"][0]


def test_a_codebook_beside_another_one(fit_of):
    models = [tiny_model("vq", seed) for seed in (0, 1)]
    for model in models:
        model.change_config(scaling_factor=1.0)
    found, assembled = fit_of(models[0], models[0])
    assert found.new_decoder_on_old_latents["psnr"] == assembled["old"].metrics["psnr"]
    assert fit_of(models[1], models[0])[0].verdict != "equal"


def test_sums_over_parts_are_those_over_all():
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 6, 3, 4, 5, generator=generator) + 100
    whole, parts = LatentPairs(3), LatentPairs(3)
    whole.add(new, old)
    for part in (slice(0, 1), slice(1, 1), slice(1, 6)):
        pairs = LatentPairs(3)
        pairs.add(new[part], old[part])
        parts.merge(LatentPairs.from_state(pairs.state()))
    assert parts.unequal == whole.unequal == new.numel()
    for name, values in whole.channels().items():
        assert parts.channels()[name] == pytest.approx(values, rel=1e-9), name
    assert parts.relative_mse == pytest.approx(whole.relative_mse, rel=1e-12)


def test_rescaling_does_not_undo_a_mirrored_or_constant_channel():
    values = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    pairs = LatentPairs(2)
    pairs.add(-values, values)
    assert pairs.relative_mse_rescaled == 1
    constant = LatentPairs(2)
    constant.add(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    assert constant.relative_mse == 0
    assert math.isnan(constant.channels()["correlation"][0])


@pytest.mark.parametrize(
    ("lost", "movement", "verdict"),
    [
        (0.0, 0.05, "fits"),
        (0.3, 0.05, "close"),
        (0.0, 0.2, "close"),
        (1.0, 0.05, "moved"),
        (0.0, 0.5, "moved"),
        (4.0, 0.05, "other"),
        (0.0, 1.2, "other"),
    ],
)
def test_the_worse_of_pixels_and_latents_decides(lost, movement, verdict):
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(8, 1, 64, 64, generator=generator)
    pairs = LatentPairs(1)
    pairs.add(old + movement * torch.randn(old.shape, generator=generator), old)
    for losses in ((lost, 0.0), (0.0, lost), (lost, lost)):
        found, advice = advise("new", "old", pairs, *losses)
        assert found == verdict
        assert f"{lost:.2f} dB" in advice
        # A denoiser's own latents, which only the new decoder gets, may do although the encoder's do not.
        generates = verdict in ("moved", "other") and losses[0] == 0
        assert ("What it generates decodes here without loss" in advice) == generates


def test_what_no_denoiser_could_take_is_refused():
    plain = NamedModel("old", "old", kl_model())
    unscaled = tiny_model("kl")
    unscaled.change_config(scaling_factor=None)
    scaled_vq = tiny_model("vq")
    scaled_vq.change_config(scaling_factor=1.0)
    deeper = tiny_model("kl", latent_channels=3)
    deeper.change_config(scaling_factor=1.0)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    coarser = tiny_model("kl", block_out_channels=(8, 8, 8), **levels)
    coarser.change_config(scaling_factor=1.0)
    cases = {
        "--family new=sd1": unscaled,
        "old has no codebook": scaled_vq,
        "new have 3 channels at 1/2 of the size, and those of the teacher old 4 channels": deeper,
        "new have 4 channels at 1/4 of the size": coarser,
        "which has no latents for a denoiser": nn.Identity(),
        "decodes to images 2 times as large": tiny_model("kl", upscale=2),
    }
    for says, model in cases.items():
        with pytest.raises(ValueError, match=says):
            check_teacher([NamedModel("new", "new", model), plain], plain)
    teacher = NamedModel("old", "old", unscaled)
    with pytest.raises(ValueError, match="--family old=sd1"):  # the teacher's own fault comes first
        check_teacher([NamedModel("new", "new", deeper), teacher], teacher)


def test_who_is_the_teacher(tmp_path):
    assert add_teacher(["a=x", "y"], "a") == (["a=x", "y"], "a")
    assert add_teacher(["a=x", "y"], "x") == (["a=x", "y"], "a")
    assert add_teacher(["a=x"], "y") == (["a=x", "y"], "y")
    assert add_teacher(["a=x"], "t=x") == (["a=x", "t=x"], "t")
    for teacher in ("a", "x", "a=x"):
        with pytest.raises(ValueError, match=r"the only model: .* --teacher teacher=x"):
            add_teacher(["a=x"], teacher)
    with pytest.raises(ValueError, match="both called a"):
        add_teacher(["a=x"], "a=y")
    with pytest.raises(ValueError, match="add --teacher MODEL, or leave --family out"):
        Request(["x"], "photos", tmp_path / "r", families=["sd1"]).check()


@pytest.fixture
def request_beside(measures, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_measures", lambda device, **options: measures)
    new = kl_model()
    with torch.no_grad():
        new.quant_conv.bias[0] += 0.1
    new.save_pretrained(tmp_path / "new")
    kl_model().save_pretrained(tmp_path / "old")

    def make(out="report", **changes):
        options = {"protocol": "native", "settings": Settings(cycle_images=0), "teacher": f"{tmp_path}/old"}
        return Request([f"{tmp_path}/new"], str(image_folder), tmp_path / out, **{**options, **changes})

    return make


def test_the_teacher_is_measured_too(request_beside, tmp_path):
    results = evaluate(request_beside(limit=12), CPU)
    assert list(results.models) == ["new", "old"]
    assert results.teacher == "old"
    assert list(results.fit) == ["new"]
    assert results.protocol["teacher"]["sha256"] == results.details["old"].sha256
    assert Results.load(tmp_path / "report") == results
    data = json.loads((tmp_path / "report/results.json").read_text())
    assert data["fit"]["new"]["new_decoder_on_old_latents"].keys() == {
        "psnr",
        "psnr_loss",
        "ssim",
        "lpips_alex",
    }
    assert data["fit"]["new"]["channels"].keys() == {"mean_shift", "std_ratio", "correlation", "relative_mse"}
    # The numbers of the models themselves are those of an evaluation without a teacher.
    alone = evaluate(request_beside("alone", limit=12, teacher=None), CPU)
    assert "teacher" not in json.loads((tmp_path / "alone/results.json").read_text())
    for name, value in alone.models["new"].items():
        if name != "images_per_second":
            assert results.models["new"][name] == value


def test_interrupted_between_a_model_and_its_fit(request_beside, monkeypatch, tmp_path):
    whole = evaluate(request_beside("whole"), CPU)
    measure_fit = module.Evaluation._measure_fit

    def stop(self, block, model, shards):
        if block.number == 1:
            raise KeyboardInterrupt
        measure_fit(self, block, model, shards)

    with monkeypatch.context() as patch:
        patch.setattr(module.Evaluation, "_measure_fit", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(request_beside(), CPU)
    said = []
    again = evaluate(request_beside(), CPU, said.append)
    assert any("going on: 1 of 3 blocks" in text for text in said)
    assert again.fit == whole.fit
    assert whole.fit["new"].relative_mse > 0


def test_each_model_encodes_an_image_once(request_beside, monkeypatch):
    counts = {"encode": 0}
    encode = NamedModel.encode

    def counted(self, images):
        counts["encode"] += 1
        return encode(self, images)

    monkeypatch.setattr(NamedModel, "encode", counted)
    evaluate(request_beside(limit=5), CPU)
    assert counts["encode"] == 0  # the reconstruction's latents are used again


def test_another_teacher_gives_other_numbers(source, measures, tmp_path):
    blocks = ImageBlocks(source, PROTOCOLS["native"], 3)
    new, *teachers = (NamedModel(name, name, kl_model(seed)) for name, seed in (("n", 0), ("a", 1), ("a", 2)))
    folders = set()
    for teacher in teachers:
        evaluation = Evaluation(blocks, measures, Settings(), tmp_path, "", CPU, teacher=teacher)
        folders.add(evaluation._fit_shards(new).folder.name)
    assert len(folders) == 2


# Models of two classes


def flux2_model(seed=0):
    torch.manual_seed(seed)
    widths = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = Flux2VAE(**widths, **blocks).eval()
    model.set_statistics(torch.linspace(-0.5, 0.5, 16), torch.linspace(0.25, 1.0, 16))
    return model


def same_but_scaled_by_its_config(flux2, scale, shift):
    """A KLVAE with the weights of a FLUX.2 VAE."""
    model = KLVAE(**{name: flux2.config[name] for name in SHARED}, scaling_factor=scale, shift_factor=shift)
    state = {name: value for name, value in flux2.state_dict().items() if not name.startswith("bn.")}
    model.load_state_dict(state)
    return model.eval()


SHARED = (
    *("block_out_channels", "norm_num_groups", "latent_channels", "down_block_types", "up_block_types"),
    "layers_per_block",
)


@pytest.mark.parametrize("flux2_is", ["teacher", "model"])
def test_a_flux2_vae_beside_a_model_without_patches(fit_of, images, flux2_is):
    """With equal weights and statistics that equal a config's scale and shift, nothing has moved."""
    flux2 = flux2_model()
    flux2.set_statistics(torch.full((16,), 0.25), torch.full((16,), 4.0 - 1e-4))
    plain = same_but_scaled_by_its_config(flux2, 0.5, 0.25)
    models = (plain, flux2) if flux2_is == "teacher" else (flux2, plain)
    found, assembled = fit_of(*models)
    assert found.relative_mse < 1e-10
    assert found.verdict in ("equal", "fits")
    assert len(found.channels["correlation"]) == 4  # channels of the latents, not of patches
    own = assembled["old"].metrics["psnr"].value
    assert found.new_decoder_on_old_latents["psnr"].value == pytest.approx(own, abs=0.01)
    # Statistics by place are another normalisation than the config's.
    flux2.set_statistics(torch.linspace(-3, 3, 16), torch.full((16,), 4.0))
    latents = NamedModel("f", "f", flux2).normalise(flux2.encode(images[:2]).latents)
    assert latents.shape == plain.encode(images[:2]).latents.shape


def test_two_flux2_vaes_are_compared_in_whole_patches(fit_of):
    found, _ = fit_of(flux2_model(), flux2_model())
    assert found.verdict == "equal"
    assert len(found.channels["correlation"]) == 16


def test_the_remedy_for_a_wrong_scale_is_the_class_s():
    flux2, plain = NamedModel("f", "f", flux2_model()), NamedModel("p", "p", kl_model())
    pairs = LatentPairs(1)
    values = torch.randn(4, 1, 16, 16)
    pairs.add(3 * values, values)

    def advice(model, teacher):
        return advise("new", "old", pairs, 4.0, 4.0, remedy=scale_remedy(model, teacher))[1]

    for text in (advice(flux2, flux2), advice(flux2, plain)):
        assert "bn.running_mean and bn.running_var" in text
        assert "scaling_factor" not in text
        assert "--family" not in text
    assert "from old" in advice(flux2, flux2)
    assert "--family" not in advice(plain, flux2)
    assert "scaling_factor" in advice(plain, flux2)
    assert "family of old by --family" in advice(plain, plain)
