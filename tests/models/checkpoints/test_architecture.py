import logging

import pytest
import torch

from latentae import VQGAN
from latentae.models.checkpoints.architecture import infer_architecture
from tests.models.checkpoints.examples import ARCHITECTURES, build


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_argument_is_found(name):
    model = build(**ARCHITECTURES[name])
    architecture = infer_architecture(model.state_dict())
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
    ("widths", "groups"), [((128, 256), 32), ((96, 192), 32), ((16, 64), 16), ((12, 20), 4), ((7, 7), 1)]
)
def test_groups_are_32_unless_impossible(widths, groups, caplog):
    state = build(block_out_channels=widths, norm_num_groups=1, layers_per_block=1).state_dict()
    with caplog.at_level(logging.WARNING, logger="latentae"):
        assert infer_architecture(state).arguments["norm_num_groups"] == groups
    assert ("norm_num_groups" in caplog.text) == (groups != 32)
    caplog.clear()
    assert infer_architecture(state, norm_num_groups=1).arguments["norm_num_groups"] == 1
    assert caplog.text == ""


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
            "no codebook.*puts out 4 channels, where a posterior over 4 takes 8",
        ),
        (
            lambda s: {**s, "quantize.embedding.weight": torch.zeros(8, 4)},
            "puts out 8 channels and a decoder that takes 4",
        ),
    ],
)
def test_what_no_model_of_ours_can_hold(spoil, message):
    state = build(block_out_channels=(32, 64), layers_per_block=1).state_dict()
    with pytest.raises(ValueError, match=message):
        infer_architecture(spoil(state))
