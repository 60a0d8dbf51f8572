"""Files as trainers and other programs write them, opened by name."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentae import KLVAE, VQGAN, load_autoencoder
from latentae.models.checkpoints.layouts import to_ldm_names
from tests.models.checkpoints.examples import build, images_for

DENOISER = {"x_embedder.proj.weight": torch.zeros(3), "blocks.0.attn.qkv.weight": torch.zeros(3)}
DISCRIMINATOR = {"main.0.weight": torch.zeros(2)}


@pytest.fixture(scope="module")
def model():
    return build(block_out_channels=(32, 64), layers_per_block=1)


def _parts(state):
    parts = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def _doubled(state):
    return {name: tensor * 2 for name, tensor in state.items()}


CONTENTS = {
    "VA-VAE": lambda s: {
        "state_dict": {
            **to_ldm_names(s),
            "foundation_model.model.pos_embed": torch.zeros(4),
            "linear_proj.weight": torch.zeros(8, 4, 1, 1),
        }
    },
    "REPA-E": lambda s: {
        "model": DENOISER,
        "ema": DENOISER,
        "vae": s,
        "discriminator": DISCRIMINATOR,
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "steps": 5,
    },
    "BasicSR": lambda s: {"params": s, "params_ema": _doubled(s)},
    "ema_pytorch": lambda s: {
        "initted": torch.tensor(True),
        "step": torch.tensor(5),
        **{f"online_model.{name}": tensor for name, tensor in s.items()},
        **{f"ema_model.module.{name}": tensor for name, tensor in _doubled(s).items()},
    },
    "averages alone": lambda s: {"ema": s, "epoch": 3},
    "generator": lambda s: {"generator": s, "discriminator": DISCRIMINATOR},
    "an entry for each part": lambda s: {**_parts(s), "discriminator": DISCRIMINATOR, "step": 3},
    "swa_utils": lambda s: {
        "n_averaged": torch.tensor(3),
        **{f"module.{name}": tensor for name, tensor in s.items()},
    },
    "DeepSpeed": lambda s: {"module": {f"_forward_module.{name}": x for name, x in s.items()}, "dp": 8},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_checkpoints_of_trainers(model, tmp_path, name):
    path = tmp_path / "last.pt"
    torch.save(CONTENTS[name](dict(model.state_dict())), path)
    images = images_for(model)
    opened = load_autoencoder(path)
    assert type(opened) is KLVAE
    assert torch.equal(opened(images).sample, model(images).sample)
    has_averages = name in ("BasicSR", "ema_pytorch")
    if has_averages or name == "averages alone":
        averaged = load_autoencoder(path, variant="ema").decoder.conv_in.weight
        assert torch.equal(averaged, model.decoder.conv_in.weight * (1 + has_averages))
    else:
        with pytest.raises(ValueError, match=r"variant is 'ema', but .* have no average"):
            load_autoencoder(path, variant="ema")


def test_the_scale_is_that_of_the_mapping_around_the_autoencoder(model, tmp_path):
    ldm = {f"first_stage_model.{name}": tensor for name, tensor in to_ldm_names(model.state_dict()).items()}
    stored = {"state_dict": {**ldm, "scale_factor": torch.tensor(0.25)}, "ema": {"decay": torch.tensor(0.9)}}
    torch.save(stored, tmp_path / "last.ckpt")
    assert load_autoencoder(tmp_path / "last.ckpt").config.scaling_factor == 0.25


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"model": DENOISER, "ema": dict(DENOISER), "discriminator": DISCRIMINATOR},
            ["5 tensors", "model 2, ema 2, discriminator 1"],
        ),
        ({"encoder": {"conv_in.weight": torch.zeros(8, 3, 3, 3)}, "epoch": 1}, ["conv_in.weight"]),
        (
            {"unet": {f"block.{number}.weight": torch.zeros(1) for number in range(3000)}, "te": DENOISER},
            ["3002 tensors", "unet 3000", "te 2"],
        ),
    ],
)
def test_what_a_file_without_an_autoencoder_holds(tmp_path, content, words):
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt: holds no autoencoder") as caught:
        load_autoencoder(tmp_path / "last.pt")
    assert all(word in str(caught.value) for word in words)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("part", ["", "encoder.", "decoder.", "decoder.mid_block."])
def test_names_of_wrapped_parts(model, tmp_path, wrapper, part):
    state = {
        f"{part}{wrapper}{name.removeprefix(part)}" if name.startswith(part) else name: tensor
        for name, tensor in model.state_dict().items()
    }
    save_file(state, tmp_path / "vae.safetensors")
    model.save_pretrained(tmp_path / "model")
    save_file(state, tmp_path / "model/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    images = images_for(model)
    for place in (tmp_path / "vae.safetensors", tmp_path / "model"):
        assert torch.equal(load_autoencoder(place)(images).sample, model(images).sample)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8])
def test_integers_are_no_weights(model, tmp_path, kind):
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    for path in tmp_path.glob("*/*.safetensors"):
        state = {name: x.to(kind) if x.ndim == 4 else x for name, x in load_file(path).items()}
        save_file(state, path, metadata={"format": "pt"})
    whole = tmp_path / "whole/diffusion_pytorch_model.safetensors"
    torch.save(load_file(whole), tmp_path / "vae.pt")
    for place in (tmp_path / "whole", tmp_path / "shards", tmp_path / "vae.pt"):
        with pytest.raises(ValueError, match=rf"tensors hold {str(kind)[6:]} where weights are floating"):
            load_autoencoder(place)
    with pytest.raises(ValueError, match=r"tensors hold u?int8"):
        KLVAE.from_pretrained(tmp_path / "whole")


def test_integers_that_a_model_has_are_read(tmp_path):
    model = build(**{"class": VQGAN, "quantizer": {"type": "fsq", "levels": [5, 3]}, "latent_channels": 2})
    model.register_buffer("steps", torch.tensor(3))
    model.save_pretrained(tmp_path)
    assert load_autoencoder(tmp_path).dtype == torch.float32
