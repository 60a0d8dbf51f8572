import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from latentae.models.checkpoints.layouts import (
    describe_contents,
    find_autoencoder,
    to_diffusers_names,
    to_ldm_names,
)
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


@pytest.fixture(scope="module")
def state():
    return build(**ARCHITECTURES["VQ attention at two levels"]).state_dict()


def _same(found, state):
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "prefix", ["", "first_stage_model.", "vae.", "model.", "module.", "model._orig_mod."]
)
@pytest.mark.parametrize("layout", [to_ldm_names, dict])
def test_under_any_prefix_in_either_layout(state, prefix, layout):
    around = {} if prefix == "" else {"unet.out.2.weight": torch.zeros(1)}
    stored = {prefix + name: tensor for name, tensor in layout(state).items()}
    assert _same(find_autoencoder({**around, **stored}), state)


def test_the_first_stage_comes_before_other_autoencoders(state):
    other = {f"cond_stage_model.{name}": torch.zeros_like(x) for name, x in to_ldm_names(state).items()}
    first = {f"first_stage_model.{name}": tensor for name, tensor in to_ldm_names(state).items()}
    assert _same(find_autoencoder({**other, **first}), state)
    second = {name.replace("cond_stage", "other"): tensor for name, tensor in other.items()}
    with pytest.raises(ValueError, match=r"several autoencoders, under cond_stage_model\., other_model\."):
        find_autoencoder({**other, **second})


def test_what_only_training_needs_is_left_out(state):
    extra = [
        "loss.perceptual_loss.net.slice1.0.weight",
        "loss.discriminator.main.0.weight",
        "loss.logvar",
        "model_ema.decay",
        "model_ema.encoderconv_inweight",
        "discriminator.main.0.weight",
        "quantize.embedding.cluster_size",
        "quantize.embedding.embed_avg",
        "quantize.used",
        "colorize",
        "bn.running_mean",
    ]
    stored = {**to_ldm_names(state), **{name: torch.zeros(1) for name in extra}}
    assert _same(find_autoencoder(stored), state)
    unknown = find_autoencoder({**stored, "quantize.proj.weight": torch.zeros(1)})
    assert unknown.keys() - state.keys() == {"quantize.proj.weight"}  # kept, so that it is not overlooked


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_averaged_weights_on_request(state, prefix):
    ldm = to_ldm_names(state)
    stored = {prefix + name: tensor for name, tensor in ldm.items()}
    averages = {f"{prefix}model_ema.{name.replace('.', '')}": tensor + 1 for name, tensor in ldm.items()}
    both = {**stored, **averages, f"{prefix}model_ema.decay": torch.tensor(0.999)}
    assert _same(find_autoencoder(both), state)
    assert _same(find_autoencoder(both, ema=True), {name: tensor + 1 for name, tensor in state.items()})
    del both[f"{prefix}model_ema.decoderconv_inbias"]
    with pytest.raises(ValueError, match=r"1 of \d+ tensors have no average, such as decoder\.conv_in\.bias"):
        find_autoencoder(both, ema=True)


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("online_model.", "ema_model."),
        ("params.", "params_ema."),
        ("vae.", "vae_ema."),
        ("vae.", "ema.vae."),
        ("generator.", "g_ema."),
        ("model.", "ema."),
        ("", "ema_model."),
        ("state_dict.first_stage_model.", "ema.first_stage_model."),
        ("ema.online_model.", "ema.ema_model."),
    ],
)
def test_averages_under_a_name_of_their_own(state, plain, average):
    stored = {
        **{plain + name: tensor for name, tensor in to_ldm_names(state).items()},
        **{average + name: tensor + 1 for name, tensor in to_ldm_names(state).items()},
        "ema.step": torch.tensor(3),
    }
    averages = {name: tensor + 1 for name, tensor in state.items()}
    assert _same(find_autoencoder(stored), state)
    assert _same(find_autoencoder(stored, ema=True), averages)
    alone = {name: tensor for name, tensor in stored.items() if name.startswith(average)}
    assert _same(find_autoencoder(alone), averages)
    assert _same(find_autoencoder(alone, ema=True), averages)


@pytest.mark.parametrize(
    "around",
    [
        [
            "foundation_model.model.cls_token",
            "foundation_model.blocks.0.attn.qkv.weight",
            "linear_proj.weight",
        ],
        ["disc.main.0.weight", "perceptual_loss.lin0.weight", "lpips.net.weight", "rec_loss.weight"],
        ["n_averaged", "step"],
    ],
)
def test_what_trainers_keep_beside_the_parts(state, around):
    assert _same(find_autoencoder({**state, **dict.fromkeys(around, torch.tensor(1.0))}), state)


def test_names_that_the_model_has_are_kept(state):
    stored = {**state, "quantize.cluster_size": torch.zeros(1), "quantize.used": torch.zeros(1)}
    kept = find_autoencoder(stored, keep=["quantize.cluster_size"])
    assert kept.keys() - state.keys() == {"quantize.cluster_size"}


def test_flattened_parameters_of_fsdp():
    stored = {"encoder._flat_param": torch.zeros(9), "decoder.mid_block._flat_param": torch.zeros(9)}
    with pytest.raises(ValueError, match=r"2 flattened parameters of FSDP, such as encoder\._flat_param"):
        find_autoencoder(stored)


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_half_an_autoencoder(state, side):
    half = {name: tensor for name, tensor in to_ldm_names(state).items() if name.startswith(side)}
    with pytest.raises(ValueError, match=f"holds the {side} of an autoencoder without its other half"):
        find_autoencoder(half)


def test_no_autoencoder():
    with pytest.raises(ValueError, match="holds no autoencoder: it looks like a LoRA"):
        find_autoencoder({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "LoRA"),
        ("unet.down_blocks.0.attentions.0.processor.to_q.lora.up.weight", "LoRA"),
        ("diffusion_model.blocks.0.attn.q.lora_A.weight", "LoRA"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a", "LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "without its autoencoder"),
        ("input_blocks.1.0.emb_layers.1.weight", "without its autoencoder"),
        ("time_embedding.linear_1.weight", "without its autoencoder"),
        ("double_blocks.0.img_attn.proj.weight", "without its autoencoder"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "ControlNet"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "text encoder"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "text encoder"),
        ("vision_model.embeddings.class_embedding", "image encoder"),
        ("emb_params", "textual inversion"),
        ("encoder.conv1.weight", "video"),
        ("encoder.conv_blocks.0.res.0.norm1.weight", "LlamaGen"),
        ("encoder.stages.0.op_list.0.main.conv.weight", "DC-AE"),
        ("discriminator.main.0.weight", "discriminator"),
        ("body.0.rdb1.conv1.weight", "upscaler"),
    ],
)
def test_contents_that_are_no_autoencoder(name, words):
    described = describe_contents([name, "zzz.weight"])
    assert words in described
    assert f"2 tensors, such as {name}, zzz.weight" in described
    assert "zzz 1" in described


def test_unknown_contents():
    names = ["d.weight", "c.weight", "b.weight", "a.weight"]
    assert describe_contents([f"net.{name}" for name in names]) == (
        "holds something unknown (4 tensors, such as net.a.weight, net.b.weight, net.c.weight)"
    )


def test_a_few_tensors_among_many_do_not_say_what_a_file_is():
    denoiser = [f"model.blocks.{number}.weight" for number in range(5)]
    described = describe_contents([*denoiser, "discriminator.main.0.weight", "step"])
    assert described == (
        "holds something unknown (7 tensors, such as discriminator.main.0.weight, model.blocks.0.weight, "
        "model.blocks.1.weight; by the first part of their names: model 5, discriminator 1, no name 1)"
    )


def test_thousands_of_names_make_a_short_message():
    names = [f"{'x' * 200}{number}.{'weight' * 50}" for number in range(3000)]
    described = describe_contents(names)
    assert "3000 tensors" in described
    assert "and 2994 others" in described
    assert len(described) < 1000
