import pytest
import torch

from latentae.models.checkpoints.contents import find_autoencoder
from latentae.models.checkpoints.names import to_ldm_names
from tests.models.checkpoints.examples import ARCHITECTURES, build


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
