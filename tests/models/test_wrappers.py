import copy
import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from latentae import KLVAE, VQGAN, load_autoencoder
from latentae.export import export_autoencoder
from latentae.models import TinyAutoencoder
from latentae.models.wrappers import clean_name, clean_names, unwrap
from tests.models.conftest import make


def _compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = {"compile": _compiled, "DataParallel": nn.DataParallel, "checkpoint": checkpoint_wrapper}
STOCK = {KLVAE: AutoencoderKL, VQGAN: VQModel, TinyAutoencoder: AutoencoderTiny}


def _model(cls):
    torch.manual_seed(0)
    return TinyAutoencoder().eval() if cls is TinyAutoencoder else make(cls)


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("decoder._orig_mod.conv_in.weight", "decoder.conv_in.weight"),
        ("module._orig_mod.encoder.module.x", "encoder.x"),
        ("_fsdp_wrapped_module.a._checkpoint_wrapped_module.b", "a.b"),
        ("a_module.module_b.c", "a_module.module_b.c"),
        ("decoder.module", "decoder.module"),
    ],
)
def test_names(name, clean):
    assert clean_name(name) == clean
    assert clean_names({name: 1}) == {clean: 1}


def test_names_that_become_one():
    with pytest.raises(ValueError, match=r"a and module\.a are the same tensor"):
        clean_names({"a": 1, "module.a": 2})


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("cls", [KLVAE, VQGAN, TinyAutoencoder])
def test_a_model_with_wrapped_parts_is_saved_as_without(cls, wrapper, tmp_path):
    model, plain = _model(cls), _model(cls)
    model.decoder = WRAPPERS[wrapper](model.decoder)
    state = model.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    model.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    opened = load_autoencoder(tmp_path)
    assert torch.equal(opened(images).sample, plain(images).sample)
    assert STOCK[cls].from_pretrained(tmp_path).state_dict().keys() == plain.state_dict().keys()
    assert type(model.to_diffusers()) is STOCK[cls]
    assert torch.equal(model(images).sample, plain(images).sample)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("format", ["diffusers", "ldm"])
def test_a_model_with_wrapped_parts_is_exported(wrapper, format, tmp_path):
    model = make(KLVAE, norm_num_groups=32, block_out_channels=(32, 64))
    model.encoder, model.decoder = (WRAPPERS[wrapper](part) for part in (model.encoder, model.decoder))
    path = tmp_path / ("model" if format == "diffusers" else "model.safetensors")
    assert export_autoencoder(model, path, format=format).max_error < 1e-5
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(load_autoencoder(path)(images).sample, model(images).sample)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_go_in_with_and_without_the_names_of_wrappers(wrapper):
    plain = make(KLVAE)
    model = make(KLVAE)
    model.decoder.mid_block = WRAPPERS[wrapper](model.decoder.mid_block)
    raw = {
        name.replace("decoder.mid_block.", "decoder.mid_block._orig_mod."): tensor
        for name, tensor in plain.state_dict().items()
    }
    for state in (plain.state_dict(), raw):
        for target in (model, plain, nn.ModuleDict({"vae": model})):
            with torch.no_grad():
                next(target.parameters()).zero_()
            prefix = "vae." if isinstance(target, nn.ModuleDict) else ""
            result = target.load_state_dict({prefix + name: tensor.clone() for name, tensor in state.items()})
            assert (result.missing_keys, result.unexpected_keys) == ([], [])
            assert torch.equal(
                target.state_dict()[f"{prefix}encoder.conv_in.weight"], state["encoder.conv_in.weight"]
            )
    assert list(nn.ModuleDict({"vae": model}).state_dict()) == [f"vae.{name}" for name in plain.state_dict()]


@pytest.mark.parametrize("parallel", [False, True])
def test_shards_with_the_names_of_wrappers_are_opened(parallel, tmp_path, monkeypatch):
    def wrapped(name):
        return name.replace("decoder.", "decoder._orig_mod.")

    model = make(VQGAN)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        save_file(
            {wrapped(name): tensor for name, tensor in load_file(shard).items()}, shard, {"format": "pt"}
        )
    (index,) = tmp_path.glob("*.index.json")
    told = json.loads(index.read_text())
    told["weight_map"] = {wrapped(name): file for name, file in told["weight_map"].items()}
    index.write_text(json.dumps(told))
    monkeypatch.setattr("diffusers.models.modeling_utils.HF_ENABLE_PARALLEL_LOADING", parallel)
    for dtype in (torch.float32, torch.float16):
        opened = load_autoencoder(tmp_path, dtype=dtype)
        assert opened.dtype == dtype
        state = opened.state_dict()
        assert all(torch.equal(state[n], tensor.to(dtype)) for n, tensor in model.state_dict().items())


def test_a_state_that_does_not_fit_is_still_refused():
    model = make(KLVAE)
    state = dict(model.state_dict())
    state["extra.weight"] = state.pop("encoder.conv_in.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*encoder\.conv_in\.weight.*Unexpected.*extra"):
        model.load_state_dict(state)
    model.load_state_dict(state, strict=False)


def test_unwrap():
    model = make(KLVAE)
    encoder, decoder, block = model.encoder, model.decoder, model.decoder.mid_block
    decoder.mid_block = checkpoint_wrapper(block)
    model.encoder = _compiled(nn.DataParallel(encoder))
    model.decoder = _compiled(decoder)
    twin = copy.deepcopy(model)
    unwrap(model)
    assert (model.encoder, model.decoder, model.decoder.mid_block) == (encoder, decoder, block)
    unwrap(twin)
    assert type(twin.encoder) is type(encoder)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
