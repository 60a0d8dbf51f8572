import math

import pytest
import torch
from torch import nn

from latentae import KLVAE, VQGAN, VQVAE, Flux2VAE, TinyAutoencoder
from latentae.models.half_safe import LARGEST, make_half_safe
from latentae.models.precision import Reference
from tests.models.conftest import make

ATTENTION = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
SPATIAL = {"block_out_channels": (32, 64), "norm_num_groups": 32, "norm_type": "spatial"}


def make_flux2(**changes):
    arguments = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return Flux2VAE(**{**arguments, **changes}).eval()


def maker(cls):
    return lambda **changes: make(cls, **changes)


KINDS = {
    "kl": (maker(KLVAE), {"force_upcast": True}),
    "kl without convolutions": (maker(KLVAE), {"use_quant_conv": False, "use_post_quant_conv": False}),
    "flux2": (make_flux2, {"decoder_block_out_channels": (8, 12)}),
    "vq": (maker(VQVAE), {}),
    "vqgan with attention": (maker(VQGAN), ATTENTION),
    "vqgan with normalisation by codes": (maker(VQGAN), SPATIAL),
}


def overflowing(kind="kl", **changes):
    """A model whose stream grows beyond float16's range from level to level, as that of SDXL's decoder."""
    build, arguments = KINDS[kind]
    torch.manual_seed(0)
    model = build(**{**arguments, **changes})
    with torch.no_grad():
        scale(model.decoder.conv_in, 200)
        blocks = (model.decoder.mid_block, *model.decoder.up_blocks)
        for block, factor in zip(blocks, (3e3, 2e4, 4e5), strict=True):
            for resnet in block.resnets:
                scale(resnet.conv2, factor)
    return model


def scale(layer, factor):
    with torch.no_grad():
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)


def in_half(model):
    twin = type(model).from_config(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return nn.Module.to(twin, torch.float16)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_that_overflows_runs_in_float16(images, kind):
    model = overflowing(kind)
    latents = model.encode(images).latents
    exact = nn.Module.to(overflowing(kind), torch.float64).decode(latents.double()).sample
    before, names = model.decode(latents).sample, list(model.state_dict())
    assert not in_half(model).decode(latents.half()).sample.isfinite().any()

    report = model.make_half_safe(images)
    assert report.changed
    assert report.obstacle is None
    assert report.float16_before.not_finite > 0.5
    assert report.float16_after.not_finite == 0
    assert max(layer.before for layer in report.layers) > 5e5
    assert max(layer.after for layer in report.layers) <= LARGEST / 8
    assert list(model.state_dict()) == names
    # The function is the same, and float16 itself comes close to it.
    spread = (exact.max() - exact.min()).item()
    after = model.decode(latents).sample
    assert (after.double() - exact).abs().max().item() < 1e-4 * spread
    assert (before.double() - exact).abs().max().item() < 1e-4 * spread
    own = in_half(model)
    assert torch.isfinite(own.encode(images.half()).latents).all()
    pixels = own.decode(latents.half()).sample
    assert (pixels.double() - exact).abs().max().item() < 0.02 * spread
    assert report.float16_after.images < 0.02 * spread


def test_factors_are_the_largest_powers_of_two_that_suffice(images):
    model = overflowing()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = model.make_half_safe(images)
    for layer in report.layers:
        assert math.frexp(layer.factor)[0] == 0.5
    # Of a last part of the stream, the next larger factor would have been too large for some channels.
    stream = next(layer for layer in report.layers if layer.name == "decoder.up_blocks.1.resnets.1")
    assert LARGEST / 16 < stream.before * stream.factor <= LARGEST / 8
    # No weight is rounded: the exponents change, the mantissas do not.
    for name, tensor in model.state_dict().items():
        assert torch.equal(torch.frexp(tensor)[0], torch.frexp(before[name])[0]), name
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before if "encoder" in name)


def test_channels_that_fit_keep_their_weights(images):
    torch.manual_seed(0)
    model = make(KLVAE)
    conv = model.decoder.up_blocks[1].resnets[0].conv2  # 8 channels in 4 groups
    with torch.no_grad():
        conv.weight[:2] *= 1e6
    before = conv.weight.clone()
    assert model.make_half_safe(images).changed
    assert not torch.equal(conv.weight[:2], before[:2])
    assert torch.equal(conv.weight[2:], before[2:])


def test_outputs_inside_of_blocks_and_around_latents(images):
    torch.manual_seed(0)
    model = make(KLVAE)
    attention = model.decoder.mid_block.attentions[0]
    exact = nn.Module.to(make_same(model), torch.float64)
    with torch.no_grad():
        for twin in (model, exact):
            scale(twin.encoder.down_blocks[0].resnets[0].conv1, 1e6)
            scale(twin.encoder.conv_out, 2.0**20)
            twin.quant_conv.weight *= 2.0**-20
            scale(twin.decoder.mid_block.attentions[0].to_v, 2.0**20)
            twin.decoder.mid_block.attentions[0].to_out[0].weight *= 2.0**-20
            scale(twin.decoder.mid_block.attentions[0].to_q, 2.0**18)
            twin.decoder.mid_block.attentions[0].to_k.weight *= 2.0**-18
            twin.decoder.mid_block.attentions[0].to_k.bias *= 2.0**-18
            twin.post_quant_conv.weight *= 2.0**20
            twin.decoder.conv_in.weight *= 2.0**-20
        report = model.make_half_safe(images)
        assert report.float16_after.not_finite == 0
        factors = {layer.name: layer.factor for layer in report.layers}
        name = "decoder.mid_block.attentions.0"
        assert factors[f"{name}.to_q"] * factors[f"{name}.to_k"] == 1
        for moved in ("encoder.down_blocks.0.resnets.0.conv1", "encoder.conv_out", f"{name}.to_v"):
            assert factors[moved] < 1
        assert factors["quant_conv"] == factors[f"{name}.to_out.0"] == 1
        assert attention.to_q.weight.abs().max() < 1e4
        expected = exact(images.double()).sample
        assert (model(images).sample.double() - expected).abs().max() < 1e-4
        assert (in_half(model)(images.half()).sample.double() - expected).abs().max() < 0.02


def make_same(model):
    twin = type(model).from_config(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_that_fits_is_left_as_it_is(images, dtype):
    model = nn.Module.to(make(KLVAE, force_upcast=True), dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = model.make_half_safe(images)
    assert not report.changed
    assert "nothing had to change" in str(report)
    assert report.float16_before == report.float16_after
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.force_upcast is False
    assert model.dtype == dtype


def test_a_smaller_margin_changes_less(images):
    mild, strong = overflowing(), overflowing()
    smallest = [
        min(layer.factor for layer in model.make_half_safe(images, margin=margin).layers)
        for model, margin in ((mild, 1), (strong, 64))
    ]
    assert smallest[0] == 64 * smallest[1]


@pytest.mark.parametrize(("size", "margin"), [(3, 2), (10, 8)])
def test_the_margin_gives_way_to_the_eps_of_normalisations(images, size, margin):
    torch.manual_seed(0)
    model = make(KLVAE)
    scale(model.decoder.conv_in, size)  # where the stream begins
    scale(model.decoder.mid_block.resnets[1].conv2, 1e6)
    report = model.make_half_safe(images)
    assert report.changed
    assert report.margin == margin
    assert report.float32_before.images < 1e-4
    assert 1e-3 < report.float32_after.images < 0.02
    assert max(layer.after for layer in report.layers) <= LARGEST / margin
    assert report.float16_after.images < report.float32_after.images + 0.02


def unchanged(model, images):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = model.make_half_safe(images)
    assert not report.changed
    assert report.obstacle in str(report)
    assert "left as they are" in str(report)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.force_upcast is True
    return report.obstacle


def test_what_no_factor_of_weights_can_lower(images):
    model = overflowing()
    with torch.no_grad():
        scale(model.decoder.conv_norm_out, 3e4)
        model.decoder.conv_out.weight /= 3e4
    assert "decoder.conv_norm_out reaches" in unchanged(model, images)


def test_a_stream_too_small_for_the_eps_of_normalisations(images):
    torch.manual_seed(0)
    model = make(KLVAE, force_upcast=True)
    scale(model.decoder.conv_in, 0.1)
    scale(model.decoder.mid_block.resnets[1].conv2, 1e6)
    assert "eps" in unchanged(model, images)


def test_weights_that_float16_would_lose(images):
    torch.manual_seed(0)
    model = make(KLVAE, force_upcast=True)
    scale(model.decoder.conv_in, 1e-5)
    scale(model.decoder.mid_block.resnets[1].conv2, 1e6)
    assert "weights of decoder.conv_in would not fit float16" in unchanged(model, images)


@pytest.mark.parametrize(
    ("build", "changes", "says"),
    [
        (lambda: make(KLVAE), {"images": torch.zeros(1, 1, 16, 16)}, r"encodes .* \[B, 3, H, W\]"),
        (lambda: make(KLVAE), {"images": torch.zeros(0, 3, 16, 16)}, "no image"),
        (lambda: make(KLVAE), {"images": torch.full((1, 3, 16, 16), 255.0)}, "in \\[-1, 1\\]"),
        (lambda: make(KLVAE), {"margin": 0.5}, "margin is 0.5, but must be 1 or more"),
        (TinyAutoencoder, {}, "TinyAutoencoder .* cannot be made safe for float16"),
        (lambda: make(VQVAE, backbone="2017"), {}, "Encoder2017 cannot be made safe .* normalisations"),
    ],
)
def test_bad_input(images, build, changes, says):
    with pytest.raises(ValueError, match=says) as raised:
        make_half_safe(**{"model": build(), "images": images, **changes})
    assert "\n" not in str(raised.value)


def test_layers_that_cannot_be_rescaled(images):
    model = make(KLVAE)
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        model.make_half_safe(images)
    model = make(KLVAE)
    with torch.no_grad():
        model.decoder.conv_in.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite in float32"):
        model.make_half_safe(images)


@torch.no_grad()
def test_float16_on_a_cpu_is_that_of_torch(images):
    # The faster way rounds at the same places; only the order of sums differs.
    model = make(KLVAE)
    reference = Reference.of(model, images)
    measured = reference.compare(model, torch.float16)
    pixels = in_half(model).decode(reference.decoded[0].half()).sample
    native = (pixels.double() - reference.pixels[0]).abs().max().item()
    assert 0.5 * native < measured.images < 2 * native
    assert measured.images > 20 * reference.compare(model, torch.float32).images
