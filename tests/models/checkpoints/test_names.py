import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from latentae.models.checkpoints.names import to_diffusers_names, to_ldm_names
from tests.models.checkpoints.examples import ARCHITECTURES, build

# A decoder of four levels, each of whose names is translated by another rule.
PAIRS = {
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "encoder.down.1.block.0.norm1.weight": "encoder.down_blocks.1.resnets.0.norm1.weight",
    "encoder.down.1.block.0.nin_shortcut.bias": "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
    "encoder.down.2.attn.1.norm.weight": "encoder.down_blocks.2.attentions.1.group_norm.weight",
    "encoder.down.2.attn.1.q.bias": "encoder.down_blocks.2.attentions.1.to_q.bias",
    "encoder.down.2.attn.1.proj_out.bias": "encoder.down_blocks.2.attentions.1.to_out.0.bias",
    "encoder.down.0.downsample.conv.weight": "encoder.down_blocks.0.downsamplers.0.conv.weight",
    "encoder.mid.block_1.conv2.weight": "encoder.mid_block.resnets.0.conv2.weight",
    "encoder.mid.block_2.norm2.bias": "encoder.mid_block.resnets.1.norm2.bias",
    "encoder.mid.attn_1.k.bias": "encoder.mid_block.attentions.0.to_k.bias",
    "encoder.mid.attn_1.norm.bias": "encoder.mid_block.attentions.0.group_norm.bias",
    "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
    "decoder.up.3.block.2.conv1.weight": "decoder.up_blocks.0.resnets.2.conv1.weight",
    "decoder.up.0.block.0.conv1.weight": "decoder.up_blocks.3.resnets.0.conv1.weight",
    "decoder.up.2.attn.0.v.bias": "decoder.up_blocks.1.attentions.0.to_v.bias",
    "decoder.up.1.upsample.conv.bias": "decoder.up_blocks.2.upsamplers.0.conv.bias",
    "decoder.norm_out.bias": "decoder.conv_norm_out.bias",
    "quant_conv.weight": "quant_conv.weight",
    "quantize.embedding.weight": "quantize.embedding.weight",
    "loss.discriminator.main.0.weight": "loss.discriminator.main.0.weight",
}


def test_every_rule_by_example():
    state = {name: torch.zeros(1) for name in PAIRS}
    assert list(to_diffusers_names(state)) == list(PAIRS.values())
    assert list(to_ldm_names(to_diffusers_names(state))) == list(PAIRS)


@pytest.mark.parametrize("name", ["q", "k", "v", "proj_out"])
def test_projections_change_between_convolution_and_linear(name):
    weight = torch.randn(6, 6, 1, 1)
    ((key, linear),) = to_diffusers_names({f"decoder.mid.attn_1.{name}.weight": weight}).items()
    assert linear.shape == (6, 6)
    ((back, convolution),) = to_ldm_names({key: linear}).items()
    assert back == f"decoder.mid.attn_1.{name}.weight"
    assert torch.equal(convolution, weight)
    assert convolution.data_ptr() == weight.data_ptr()  # nothing was copied


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_whole_model_there_and_back(name):
    state = build(**ARCHITECTURES[name]).state_dict()
    back = to_diffusers_names(to_ldm_names(state))
    assert list(back) == list(state)
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_names_that_are_right_already_stay():
    state = build(**ARCHITECTURES["VQ attention at two levels"]).state_dict()
    assert list(to_diffusers_names(state)) == list(state)
    ldm = to_ldm_names(state)
    again = to_ldm_names(ldm)
    assert list(again) == list(ldm)
    assert all(again[key].shape == tensor.shape for key, tensor in ldm.items())


def test_old_diffusers_names():
    old = {
        f"encoder.mid_block.attentions.0.{part}.{leaf}": torch.zeros(4, 4)
        for part in ("query", "key", "value", "proj_attn")
        for leaf in ("weight", "bias")
    }
    assert list(to_diffusers_names(old)) == [
        f"encoder.mid_block.attentions.0.{part}.{leaf}"
        for part in ("to_q", "to_k", "to_v", "to_out.0")
        for leaf in ("weight", "bias")
    ]


@pytest.mark.parametrize("block", ["encoder.mid.attn_1", "encoder.down.1.attn.0", "decoder.up.0.attn.1"])
@pytest.mark.parametrize(
    "names",
    [("to_q", "to_k", "to_v", "to_out.0", "group_norm"), ("query", "key", "value", "proj_attn", "norm")],
)
def test_ldm_blocks_with_diffusers_names_of_the_attention(block, names):
    state = {f"{block}.{name}.weight": torch.zeros(4, 4) for name in names}
    usual = ("q", "k", "v", "proj_out", "norm")
    expected = to_diffusers_names({f"{block}.{name}.weight": torch.zeros(4, 4, 1, 1) for name in usual})
    assert list(to_diffusers_names(state)) == list(expected)
    convolutions = {f"{block}.{names[0]}.weight": torch.zeros(4, 4, 1, 1)}
    assert next(iter(to_diffusers_names(convolutions).values())).shape == (4, 4)


def test_diffusers_own_converter_agrees():
    model = build(**ARCHITECTURES["KL f8"])
    state = model.state_dict()
    converted = convert_ldm_vae_checkpoint(to_ldm_names(state), model.config)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in state.items())
