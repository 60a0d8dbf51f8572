import pytest
import torch

from latentae import KLVAE, VQGAN
from latentae.models.checkpoints.architecture import infer_architecture
from tests.models.checkpoints.examples import ARCHITECTURES, build


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_argument_is_found(name):
    model = build(**ARCHITECTURES[name])
    groups = model.config.norm_num_groups
    architecture = infer_architecture(model.state_dict(), None if groups == 32 else groups)
    assert architecture.quantized == (type(model) is VQGAN)
    expected = {key: model.config[key] for key in architecture.arguments}
    expected["vq_embed_dim"] = expected.get("vq_embed_dim") or model.config.latent_channels
    if architecture.quantized:
        assert architecture.arguments == expected
    else:
        del expected["vq_embed_dim"]
        assert architecture.arguments == {**expected, "force_upcast": model.config.use_post_quant_conv}
    assert architecture.factor == model.downsampling_factor
    channels = model.encode(torch.zeros(1, model.config.in_channels, 32, 32)).latents.shape[1]
    assert architecture.latent_channels == channels


@pytest.mark.parametrize(
    ("widths", "is_ldm", "guessed"),
    [
        ((128, 256, 512, 512), False, False),
        ((128, 256), False, True),
        ((96, 192), False, True),
        ((96, 192), True, False),
    ],
)
def test_groups_are_32_wherever_that_is_possible(widths, is_ldm, guessed):
    small = {"norm_num_groups": 1, "layers_per_block": 1, "mid_block_add_attention": False}
    with torch.device("meta"):
        state = KLVAE(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            **small,
        ).state_dict()
    architecture = infer_architecture(state, is_ldm=is_ldm)
    assert (architecture.arguments["norm_num_groups"], architecture.guessed_groups) == (32, guessed)
    told = infer_architecture(state, norm_num_groups=16, is_ldm=is_ldm)
    assert (told.arguments["norm_num_groups"], told.guessed_groups) == (16, False)


@pytest.mark.parametrize(
    ("widths", "possible"),
    [((16, 64), "1 or 2 or 4 or 8 or 16"), ((12, 20), "1 or 2 or 4"), ((7, 7), "1 or 7")],
)
def test_groups_are_asked_for_where_32_is_not_possible(widths, possible):
    state = build(block_out_channels=widths, norm_num_groups=1, layers_per_block=1).state_dict()
    with pytest.raises(ValueError, match=rf"pass norm_num_groups \({possible}\)"):
        infer_architecture(state, is_ldm=True)
    assert infer_architecture(state, norm_num_groups=1).arguments["norm_num_groups"] == 1
    with pytest.raises(ValueError, match="which norm_num_groups 3 does not divide"):
        infer_architecture(state, norm_num_groups=3)


def _without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: {**s, "encoder.conv_in.weight": torch.zeros(16, 3, 3, 3)},
            r"after 16 channels.*multiplier",
        ),
        (lambda s: _without(s, "encoder.down_blocks.0.downsamplers.0.conv.weight"), "after level 0"),
        (lambda s: _without(s, "encoder.conv_out.weight"), r"lacks encoder\.conv_out\.weight"),
        (lambda s: {**s, "encoder.conv_in.weight": torch.zeros(32, 3, 3, 3, 3)}, "video autoencoder"),
        (
            lambda s: {**s, "encoder.conv_in.weight": torch.zeros(864, 1)},
            r"conv_in\.weight of shape \[864, 1\]",
        ),
        (lambda s: {**s, "quantize.embed.weight": torch.zeros(8, 4)}, "Gumbel"),
        (
            lambda s: {**s, "encoder.conv_out.weight": torch.zeros(4, 64, 3, 3)},
            "no codebook.*returns 4 channels, where a posterior over 4 needs 8",
        ),
        (
            lambda s: {**s, "quantize.embedding.weight": torch.zeros(8, 4)},
            "returns 8 channels and a decoder that takes 4",
        ),
    ],
)
def test_what_no_model_of_ours_can_hold(spoil, message):
    state = build(block_out_channels=(32, 64), layers_per_block=1).state_dict()
    with pytest.raises(ValueError, match=message):
        infer_architecture(spoil(state))
