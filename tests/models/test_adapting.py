import pytest
import torch

from latentae import KLVAE, VQGAN, VQVAE
from latentae.build import build_autoencoder
from latentae.config import config_from_mapping
from latentae.config.compare import BRANCH_FIXED_KEYS
from latentae.config.describe import fields, member_name, sections_at
from latentae.config.merge import is_architecture, suits
from latentae.models import TinyAutoencoder
from latentae.models.adapting import (
    QUANTIZER_STRUCTURE,
    SAME_QUANTIZER,
    architecture_differences,
    describe_architecture,
    latent_differences,
    latent_settings,
    load_what_fits,
)
from tests.config.example import mapping
from tests.models.conftest import make

BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
ATTENTION = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}


def make_with(quantizer, **sizes):
    levels = {name: (block,) * 2 for name, block in BLOCKS.items()}
    return VQGAN(block_out_channels=(8, 16), norm_num_groups=4, quantizer=quantizer, **levels, **sizes)


def test_config_and_models_agree_which_quantizer_keys_are_architecture():
    sections = sections_at(("model", "quantizer"))
    keys = {key for section in sections for key in fields(section)}
    assert {key for key in keys if is_architecture(f"quantizer.{key}")} | {"type"} == {
        *QUANTIZER_STRUCTURE,
        "member",  # models look into it
    }
    fixed = {key.removeprefix("model.quantizer.") for key in BRANCH_FIXED_KEYS if ".quantizer." in key}
    assert fixed == {*QUANTIZER_STRUCTURE, "init"}  # which only counts at the first step
    types = [member_name(section) for section in sections]
    assert len(types) == len(set(types)) >= 10
    for ours in types:
        for theirs in types:
            same = SAME_QUANTIZER.get(ours, ours) == SAME_QUANTIZER.get(theirs, theirs)
            assert suits(ours, theirs) == same, (ours, theirs)


def test_the_words_of_a_kl_vae():
    model = make(KLVAE, in_channels=4, out_channels=4, layers_per_block=3, use_quant_conv=True, **ATTENTION)
    assert describe_architecture(model) == {
        "class": "KLVAE",
        "in_channels": 4,
        "out_channels": None,
        "block_out_channels": [8, 16],
        "layers_per_block": 3,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "attention_levels": [False, True],
        "mid_block_attention": True,
        "use_quant_conv": True,
    }


def test_the_words_of_a_vq_model():
    model = make(VQVAE, out_channels=1, vq_embed_dim=2, quantizer={"type": "ema", "decay": 0.9})
    described = describe_architecture(model)
    assert (described["out_channels"], described["backbone"]) == (1, "stock")
    assert described["quantizer"] == {"type": "ema", "decay": 0.9, "num_codes": 32, "code_dim": 2}
    assert describe_architecture(make(VQGAN))["quantizer"] == {
        "type": "vector",
        "num_codes": 32,
        "code_dim": None,
    }


@pytest.mark.parametrize(
    "model",
    [
        make(KLVAE, use_quant_conv=False, use_post_quant_conv=False, **ATTENTION),
        make(VQGAN, vq_embed_dim=2, mid_block_add_attention=False),
        make_with({"type": "fsq", "levels": [5, 3, 2]}),
        make_with({"type": "residual", "depth": 2, "member": {"type": "vector"}}, vq_embed_dim=3),
        make_with({"type": "grouped", "groups": 2, "member": {"type": "ema"}}, vq_embed_dim=6),
        make_with({"type": "grouped", "groups": 2, "member": {"type": "lfq", "bits": 3}}),
        VQVAE(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, backbone="2017"),
    ],
    ids=["KLVAE", "VQGAN", "FSQ", "residual", "grouped", "grouped LFQ", "VQVAE of 2017"],
)
def test_what_is_described_builds_the_same_model(model):
    kind = type(model).__name__
    loss = {} if kind == "VQGAN" else {"loss.adversarial": None, "discriminator": None}
    config = config_from_mapping(mapping({**loss, "model": describe_architecture(model)}))
    built = build_autoencoder(config.model, sample_size=32)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in built.state_dict().items()} == shapes
    assert architecture_differences(built, model) == []
    assert latent_differences(built, model) == []


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (
            TinyAutoencoder(num_encoder_blocks=(1, 3, 2, 3)),
            "its encoder is not made of levels with one block at the image's resolution",
        ),
        (TinyAutoencoder(act_fn="silu"), "its act_fn is 'silu', and only 'relu' can be trained"),
        (make(KLVAE, use_quant_conv=False), "its use_post_quant_conv is True, and only False can be trained"),
        (
            make(VQGAN, norm_type="spatial", block_out_channels=(32, 32), norm_num_groups=32),
            "its norm_type is 'spatial', and only 'group' can be trained",
        ),
        (make(KLVAE, act_fn="relu"), "its act_fn is 'relu', and only 'silu' can be trained"),
        (
            make(KLVAE, down_block_types=ATTENTION["down_block_types"]),
            r"attention at other levels \(\[False, True\]\) than its decoder \(\[False, False\]\)",
        ),
        (torch.nn.Linear(1, 1), "it is a Linear"),
    ],
    ids=["TAESD", "TAESD with SiLU", "one quant conv", "MoVQ", "activation", "attention", "no autoencoder"],
)
def test_what_a_config_has_no_words_for(model, says):
    with pytest.raises(ValueError, match=says):
        describe_architecture(model)


def test_differences_name_key_and_values():
    own, pretrained = make(KLVAE), make(KLVAE, block_out_channels=(8, 32), mid_block_add_attention=False)
    assert [str(difference) for difference in architecture_differences(own, pretrained)] == [
        "`model.block_out_channels` is [8, 16], and [8, 32] there",
        "`model.mid_block_attention` is True, and False there",
    ]


def test_channels_and_codes_are_no_difference_of_architecture():
    own = make(VQGAN, in_channels=4, out_channels=4, latent_channels=8, num_vq_embeddings=7, vq_embed_dim=2)
    pretrained = make(VQVAE, quantizer={"type": "ema"})
    assert architecture_differences(own, pretrained) == []
    assert [str(difference) for difference in latent_differences(own, pretrained)] == [
        "`model.latent_channels` is 8, and 4 there",
        "`model.quantizer.num_codes` is 7, and 32 there",
        "`model.quantizer.code_dim` is 2, and 4 there",
    ]


def test_what_a_quantizer_is_must_be_the_same_and_how_it_learns_not():
    plain, cosine = make(VQGAN), make(VQGAN, quantizer={"type": "cosine"})
    assert [str(difference) for difference in architecture_differences(plain, cosine)] == [
        "`model.quantizer.type` is vector, and cosine there"
    ]
    fsq = [make_with({"type": "fsq", "levels": levels}) for levels in ([5, 3, 2], [2, 3, 5])]
    assert [str(difference) for difference in architecture_differences(*fsq)] == [
        "`model.quantizer.levels` is [5, 3, 2], and [2, 3, 5] there"
    ]
    weights = [make(VQGAN, quantizer={"type": "vector", "commitment_weight": w}) for w in (0.1, 0.9)]
    assert architecture_differences(*weights) == []


def test_groups_keep_the_length_of_their_codes():
    grouped = [
        make_with({"type": "grouped", "groups": 2, "member": {"type": "vector"}}, vq_embed_dim=d)
        for d in (4, 6)
    ]
    assert [str(difference) for difference in architecture_differences(*grouped)] == [
        "`model.quantizer.member.code_dim` is 2, and 3 there"
    ]
    residual = [
        make_with({"type": "residual", "depth": 2, "member": {"type": "vector"}}, vq_embed_dim=d)
        for d in (4, 6)
    ]
    assert architecture_differences(*residual) == []
    assert len(latent_differences(*residual)) == 1


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
    assert latent_settings(model) == {
        "scaling_factor": 0.5,
        "shift_factor": 0.1,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backbone", ["stock", "2017"])
def test_a_model_that_gains_alpha_starts_opaque(channels, backbone):
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    blocks = {} if backbone == "2017" else {name: (block,) * 2 for name, block in BLOCKS.items()}
    before, grown = (
        VQVAE(in_channels=count, out_channels=count, backbone=backbone, **sizes, **blocks).eval()
        for count in (channels, 4)
    )
    adapted = load_what_fits(grown, before, alpha=True)
    assert len(adapted) == 3
    assert "opaque" in str(adapted[-1])
    picture = torch.rand(1, channels, 16, 16) * 2 - 1
    images = torch.cat([picture.expand(-1, 3, -1, -1), torch.rand(1, 1, 16, 16)], dim=1)
    with torch.no_grad():
        now, then = grown(images).sample, before(picture).sample
    torch.testing.assert_close(now[:, :3], then.expand(-1, 3, -1, -1), rtol=1e-4, atol=1e-5)
    assert torch.equal(now[:, 3:], torch.ones(1, 1, 16, 16))


def test_four_channels_without_alpha_are_bands():
    before, grown = make(KLVAE), make(KLVAE, in_channels=4, out_channels=4)
    fresh = grown.decoder.conv_out.weight[3].clone()
    load_what_fits(grown, before)
    assert torch.equal(grown.decoder.conv_out.weight[3], fresh)
