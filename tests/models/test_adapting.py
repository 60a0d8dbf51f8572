import pytest
import torch

from latentae import KLVAE, VQGAN, VQVAE
from latentae.models.adapting import load_what_fits, settings_of
from tests.models.conftest import make

CLASSES = pytest.mark.parametrize("cls", [KLVAE, VQGAN])


def pair(cls, ours, theirs=None):
    """A fresh model, and a pretrained one without a value that is zero or one by chance."""
    torch.manual_seed(0)
    pretrained = make(cls, **(theirs or {}))
    with torch.no_grad():
        for parameter in pretrained.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return make(cls, **ours), pretrained


def images(channels=3):
    return torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def reconstruct(model, pictures):
    return model(pictures).sample


@CLASSES
def test_the_same_architecture_goes_in_as_it_is(cls):
    model, pretrained = pair(cls, {})
    assert load_what_fits(model, pretrained) == ()
    for name, value in pretrained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_vq_gan_starts_from_a_vq_vae_whatever_trained_its_codebook():
    model, pretrained = make(VQGAN, quantizer={"type": "ema"}), make(VQVAE)
    assert load_what_fits(model, pretrained) == ()
    assert torch.equal(reconstruct(model, images()), reconstruct(pretrained, images()))


@CLASSES
def test_a_model_that_gains_latent_channels_reconstructs_as_before(cls):
    model, pretrained = pair(cls, {"latent_channels": 7})
    report = load_what_fits(model, pretrained)
    torch.testing.assert_close(reconstruct(model, images()), reconstruct(pretrained, images()))
    latents, before = (m.encode(images()).latents for m in (model, pretrained))
    torch.testing.assert_close(latents[:, :4], before)
    assert (latents[:, 4:] != 0).all()  # new latents say something, or nothing would learn from them
    decoder = next(tensor for tensor in report if tensor.name == "decoder.conv_in.weight")
    assert str(decoder) == "decoder.conv_in.weight [16, 4, 3, 3] -> [16, 7, 3, 3]: 3 new inputs at zero"
    quant = next(tensor for tensor in report if tensor.name == "post_quant_conv.weight")
    assert quant.change == "3 new outputs fresh, 3 new inputs at zero"


def test_the_variance_of_a_posterior_stays_beside_its_mean():
    model, pretrained = pair(KLVAE, {"latent_channels": 7})
    load_what_fits(model, pretrained)
    new, old = (m.encode(images()).latent_dist for m in (model, pretrained))
    torch.testing.assert_close(new.mean[:, :4], old.mean)
    torch.testing.assert_close(new.logvar[:, :4], old.logvar)


@pytest.mark.parametrize("quant_conv", [True, False])
def test_fewer_latent_channels_are_the_first_ones(quant_conv):
    shared = {"use_quant_conv": quant_conv, "use_post_quant_conv": quant_conv}
    model, pretrained = pair(KLVAE, {**shared, "latent_channels": 2}, shared)
    report = load_what_fits(model, pretrained)
    moments = model.encoder.conv_out.weight if not quant_conv else model.quant_conv.weight
    before = pretrained.encoder.conv_out.weight if not quant_conv else pretrained.quant_conv.weight
    columns = [0, 1, 4, 5] if quant_conv else slice(None)
    assert torch.equal(moments, before[[0, 1, 4, 5]][:, columns])
    assert "4 outputs cut off" in {tensor.change for tensor in report}


@CLASSES
def test_everything_new_learns_from_the_second_step_on(cls):
    model, pretrained = pair(cls, {"latent_channels": 7, "in_channels": 4, "out_channels": 4})
    report = load_what_fits(model, pretrained)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(images(4))
        ((output.sample - images(4)).square().mean() + sum((output.losses or {}).values())).backward()
        optimizer.step()
    assert len(report) >= 9
    for tensor in report:
        gradient = model.get_parameter(tensor.name).grad
        # of a posterior the mean alone was decoded
        rows = gradient[:7] if tensor.name.startswith("quant_conv") else gradient
        if tensor.name.startswith("quantize"):  # codes that were chosen
            rows = gradient[output.indices.unique()]
        assert (rows != 0).all(), tensor.name


def test_a_fourth_image_channel_changes_nothing_at_first():
    model, pretrained = pair(KLVAE, {"in_channels": 4, "out_channels": 4})
    report = load_what_fits(model, pretrained)
    pictures = images(4)
    torch.testing.assert_close(
        model.encode(pictures).latents, pretrained.encode(pictures[:, :3]).latents, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        reconstruct(model, pictures)[:, :3], reconstruct(pretrained, pictures[:, :3]), rtol=1e-4, atol=1e-5
    )
    assert [str(tensor) for tensor in report] == [
        "encoder.conv_in.weight [8, 3, 3, 3] -> [8, 4, 3, 3]: 1 new inputs at zero",
        "decoder.conv_out.weight [3, 8, 3, 3] -> [4, 8, 3, 3]: 1 new outputs fresh",
        "decoder.conv_out.bias [3] -> [4]: 1 new outputs fresh",
    ]


@pytest.mark.parametrize("backbone", ["stock", "2017"])
def test_grey_is_the_mean_of_the_colours(backbone):
    widths = {"block_out_channels": (8, 8, 16)} if backbone == "2017" else {}
    colour = {"backbone": backbone, **widths}
    if widths:
        colour |= {name: (kind,) * 3 for name, kind in BLOCKS.items()}
    grey = {**colour, "in_channels": 1, "out_channels": 1}
    pictures = images(1)
    model, pretrained = pair(VQVAE, grey, colour)
    report = load_what_fits(model, pretrained)
    assert [tensor.change for tensor in report] == [
        "the inputs' weights summed",
        "the mean of the outputs",
        "the mean of the outputs",
    ]
    before = reconstruct(pretrained, pictures.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True)
    torch.testing.assert_close(reconstruct(model, pictures), before, rtol=1e-4, atol=1e-5)

    model, pretrained = pair(VQVAE, colour, grey)
    report = load_what_fits(model, pretrained)
    assert [tensor.change for tensor in report] == [
        "spread over the inputs",
        "repeated for each output",
        "repeated for each output",
    ]
    colours = images(3)
    before = reconstruct(pretrained, colours.mean(dim=1, keepdim=True)).expand(-1, 3, -1, -1)
    torch.testing.assert_close(reconstruct(model, colours), before, rtol=1e-4, atol=1e-5)


BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def test_codes_of_more_dimensions_are_chosen_as_before():
    model, pretrained = pair(VQGAN, {"vq_embed_dim": 6})
    load_what_fits(model, pretrained)
    assert torch.equal(model.encode_indices(images()), pretrained.encode_indices(images()))
    assert (model.quantize.embedding.weight[:, 4:] == 0).all()
    torch.testing.assert_close(reconstruct(model, images()), reconstruct(pretrained, images()))


def test_more_codes_and_fewer():
    model, pretrained = pair(VQGAN, {"num_vq_embeddings": 40})
    fresh = model.quantize.embedding.weight.clone()
    load_what_fits(model, pretrained)
    assert torch.equal(model.quantize.embedding.weight[:32], pretrained.quantize.embedding.weight)
    assert torch.equal(model.quantize.embedding.weight[32:], fresh[32:])
    model, pretrained = pair(VQGAN, {"num_vq_embeddings": 5})
    (tensor,) = load_what_fits(model, pretrained)
    assert torch.equal(model.quantize.embedding.weight, pretrained.quantize.embedding.weight[:5])
    assert str(tensor) == "quantize.embedding.weight [32, 4] -> [5, 4]: 27 outputs cut off"


def test_what_does_not_fit_changes_nothing():
    model, pretrained = pair(KLVAE, {}, {"block_out_channels": (8, 32), "norm_num_groups": 8})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"`model\.block_out_channels` is \[8, 16\], and \[8, 32\] there; "
    ) as e:
        load_what_fits(model, pretrained)
    assert "`model.norm_num_groups` is 4, and 8 there. Leave these keys out, or give them the" in str(e.value)
    with pytest.raises(ValueError, match="it holds a VQGAN, and the config asks for a KLVAE"):
        load_what_fits(model, make(VQGAN))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_go_to_the_model_s_dtype():
    model, pretrained = pair(KLVAE, {"in_channels": 4})
    load_what_fits(model.to(torch.bfloat16), pretrained)
    assert model.encoder.conv_in.weight.dtype == torch.bfloat16
    expected = pretrained.encoder.conv_in.weight.to(torch.bfloat16)
    assert torch.equal(model.encoder.conv_in.weight[:, :3], expected)


def test_settings_that_belong_to_the_weights():
    model = make(KLVAE, scaling_factor=0.5, shift_factor=0.1, force_upcast=True, sample_size=99)
    assert settings_of(model) == {
        "scaling_factor": 0.5,
        "shift_factor": 0.1,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
    }
