"""The layers of TAESD by levels, the configs that they make, and decoders of other shapes."""

import pytest
import torch
import torch.nn.functional as F

from latentae import load_autoencoder
from latentae.build import build_autoencoder
from latentae.config import config_from_mapping
from latentae.models import TinyAutoencoder
from latentae.models.adapting import (
    architecture_differences,
    describe_architecture,
    describe_decoder,
    load_what_fits,
)
from latentae.models.checkpoints.taesd import find_halves, taesd_arguments
from latentae.models.tiny_layers import (
    TinyLevels,
    arguments_of,
    layers_of,
    levels_of_decoder,
    levels_of_encoder,
    stock_layers,
)
from tests.config.example import mapping
from tests.models.checkpoints.taesd_reference import build, in_layout
from tests.training.pretrained_models import make_tiny


def built(model):
    """The model that the config describing this one builds."""
    model_section, decoder = describe_architecture(model), describe_decoder(model)
    other = {"loss.adversarial": None, "discriminator": None, "data.image_size": 64}
    config = config_from_mapping(mapping({**other, "model": model_section, "decoder": decoder}))
    return build_autoencoder(config.model, 64, config.decoder), config


def of_edition(edition):
    halves = find_halves(in_layout(build(edition), "class"))
    return TinyAutoencoder(**taesd_arguments(halves["encoder"], halves["decoder"]))


def images(size=32):
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_usual_levels_are_the_stock_class() -> None:
    levels = TinyLevels((64, 64, 64, 64), 3)
    arguments = arguments_of(levels.encoder(3, 4), levels.decoder(4, 3))
    assert "encoder_layers" not in arguments
    assert stock_layers(TinyAutoencoder().config) == (levels.encoder(3, 4), levels.decoder(4, 3))
    assert TinyAutoencoder(**arguments).stock_objection is None
    assert (levels_of_encoder(levels.encoder(3, 4)), levels_of_decoder(levels.decoder(4, 3))) == (levels,) * 2


def test_layers_of_a_small_decoder() -> None:
    assert TinyLevels((8, 16), 2, pooled=True, folds=4).decoder(5, 3) == [
        "conv 5 16",
        "relu",
        "pooled_block 16 16",
        "pooled_block 16 16",
        "upsample",
        "conv_without_bias 16 8",
        "block 8 8",
        "conv 8 48",
        "pixel_shuffle 4",
    ]


@pytest.mark.parametrize(
    ("edition", "factor", "decoder"),
    [
        ("taesd", 8, None),
        ("taesd of FLUX.2", 8, None),
        ("f16", 16, None),
        ("wide", 8, {"widths": [20] * 4, "layers_per_block": 2, "upscale": 1}),
        ("grey", 8, None),
    ],
)
def test_an_edition_as_a_config(edition, factor, decoder):
    model = of_edition(edition)
    assert describe_decoder(model) == decoder
    twin, config = built(model)
    assert config.model.downsampling_factor == twin.downsampling_factor == model.downsampling_factor == factor
    assert layers_of(twin.config) == layers_of(model.config)
    assert architecture_differences(twin, model) == []
    if edition != "taesd of FLUX.2":
        assert twin.config.block_out_channels == model.config.block_out_channels


@pytest.mark.parametrize(("edition", "says"), [("f32", "its encoder is not"), ("deep", "its encoder is not")])
def test_editions_without_a_config(edition, says):
    with pytest.raises(ValueError, match=f"{says} made of levels .* nothing else can be trained"):
        describe_architecture(of_edition(edition))


@pytest.mark.parametrize("latents", [4, 128])
@pytest.mark.parametrize("factor", [1, 4, 32])
def test_any_latents_and_factor(factor, latents):
    levels = TinyLevels((4,) * factor.bit_length(), 1)
    arguments = arguments_of(levels.encoder(3, latents), levels.decoder(latents, 3))
    model = TinyAutoencoder(**arguments).eval()
    output = model(images())
    assert output.latents.shape == (2, latents, 32 // factor, 32 // factor)
    assert output.sample.shape == (2, 3, 32, 32)
    assert model.downsampling_factor == factor


@torch.no_grad()
@pytest.mark.parametrize("folds", [1, 2])
def test_an_upscaling_decoder_starts_by_enlarging_every_pixel(folds, tmp_path):
    teacher = make_tiny(folds=folds)
    student = make_tiny(folds=folds, upscale=2)
    for parameter in student.parameters():
        parameter.normal_()
    (report,) = load_what_fits(student, teacher)
    assert str(report) == "decoder [8, 16] -> [8, 16]: upscale 1 -> 2"
    expected = F.interpolate(teacher(images()).sample, scale_factor=2, mode="nearest")
    torch.testing.assert_close(student(images()).sample, expected, rtol=1e-5, atol=1e-5)
    # It opens again, and knows that its images are larger.
    assert "2 times as large" in student.stock_objection
    student.save_pretrained(tmp_path)
    again = load_autoencoder(tmp_path)
    assert (again.upscale, again.downsampling_factor) == (2, 2 * folds)
    assert torch.equal(again(images()).sample, student(images()).sample)
    assert describe_decoder(again)["upscale"] == 2


@torch.no_grad()
def test_a_narrower_decoder_has_slices(tmp_path):
    teacher = make_tiny()
    student = make_tiny(decoder=TinyLevels((4, 6), 1, pooled=True))
    (report,) = load_what_fits(student, teacher)
    assert str(report) == "decoder [8, 16] -> [4, 6]: the first channels are kept"
    own, its = student.state_dict(), teacher.state_dict()
    assert torch.equal(own["decoder.layers.0.weight"], its["decoder.layers.0.weight"][:6])
    block = "decoder.layers.2."
    assert torch.equal(own[block + "conv.2.weight"], its[block + "conv.2.weight"][:6, :6])
    # Of each of the 4 groups of 16 hidden channels the first 6.
    hidden = [16 * group + i for group in range(4) for i in range(6)]
    assert torch.equal(own[block + "pool.0.weight"], its[block + "pool.0.weight"][hidden][:, :6])
    assert torch.equal(own[block + "pool.1.bias"], its[block + "pool.1.bias"][hidden])
    assert torch.equal(own[block + "pool.3.weight"], its[block + "pool.3.weight"][:6][:, hidden])
    assert torch.equal(own["decoder.layers.4.weight"], its["decoder.layers.4.weight"][:4, :6])
    last = f"decoder.layers.{len(student.decoder.layers) - 1}."
    assert torch.equal(own[last + "weight"], its[last + "weight"][:, :4])
    assert torch.equal(own[last + "bias"], its[last + "bias"])
    for name in (name for name in its if name.startswith("encoder.")):
        assert torch.equal(own[name], its[name]), name
    student.save_pretrained(tmp_path)
    assert torch.equal(load_autoencoder(tmp_path)(images()).sample, student(images()).sample)


@torch.no_grad()
@pytest.mark.parametrize("levels", [TinyLevels((8, 16), 3, True), TinyLevels((12, 16), 1, True)])
def test_more_blocks_or_channels_change_nothing_at_first(levels):
    teacher = make_tiny()
    student = make_tiny(decoder=levels)
    load_what_fits(student, teacher)
    torch.testing.assert_close(student(images()).sample, teacher(images()).sample, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_fewer_blocks_are_the_first():
    teacher = make_tiny(blocks=3)
    student = make_tiny(blocks=3, decoder=TinyLevels((8, 16), 1, True))
    load_what_fits(student, teacher)
    own, its = student.state_dict(), teacher.state_dict()
    assert torch.equal(own["decoder.layers.2.pool.0.weight"], its["decoder.layers.2.pool.0.weight"])
    assert torch.equal(own["decoder.layers.4.weight"], its["decoder.layers.6.weight"])


@torch.no_grad()
def test_more_latent_channels_and_one_image_channel():
    teacher = make_tiny(pooled=False)
    levels = TinyLevels((8, 16), 1)
    more = TinyAutoencoder(**arguments_of(levels.encoder(3, 6), levels.decoder(6, 3))).eval()
    reports = load_what_fits(more, teacher)
    assert [report.change for report in reports] == ["2 new outputs fresh"] * 2 + ["2 new inputs at zero"]
    torch.testing.assert_close(more(images()).sample, teacher(images()).sample)
    grey = TinyAutoencoder(**arguments_of(levels.encoder(1, 4), levels.decoder(4, 1))).eval()
    load_what_fits(grey, teacher)
    picture = images()[:, :1]
    expected = teacher(picture.expand(-1, 3, -1, -1)).sample.mean(dim=1, keepdim=True)
    torch.testing.assert_close(grey(picture).sample, expected, rtol=1e-5, atol=1e-5)


def test_an_upscale_that_the_layers_do_not_have():
    levels = TinyLevels((8, 16), 1)
    layers = {"encoder_layers": levels.encoder(3, 4), "decoder_layers": levels.decoder(4, 3)}
    with pytest.raises(ValueError, match="upscale is 2, but decoder_layers end with conv 8 3"):
        TinyAutoencoder(**arguments_of(*layers.values()), upscale=2)
    with pytest.raises(ValueError, match="upscale is 2, but there are no decoder_layers"):
        TinyAutoencoder(upscale=2)
