import copy
import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from latentae import KLVAE, VQGAN, load_autoencoder
from latentae.export import export_autoencoder
from latentae.models import TinyAutoencoder
from latentae.models.plain import (
    check_weights,
    clean_name,
    clean_names,
    dequantise,
    make_plain,
    plain,
    unwrap,
)
from tests.export.conftest import make_kl, make_vq
from tests.models.conftest import make

IMAGES = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Quantised(Tensor):
    """Half of the values that it stands for, in 8 bits."""

    @staticmethod
    def of(values):
        scale = values.abs().max() / 127
        made = (values / scale).round().as_subclass(Quantised)
        made.scale = scale
        return made

    def detach(self):
        return self

    def dequantize(self):
        return self.as_subclass(Tensor) * self.scale


def reconstruct(model):
    with torch.no_grad():
        return model(IMAGES).sample


def test_a_plain_model_is_not_copied():
    model = make_kl()
    assert plain(model) is model
    assert make_plain(model) == []


@pytest.mark.parametrize("make", [make_kl, make_vq])
@pytest.mark.parametrize("in_use", [True, False])
def test_fused_projections_are_split(make, in_use):
    model = make()
    names = set(model.state_dict())
    model.fuse_qkv_projections()
    with torch.no_grad():  # as training would, whose weights the others do not follow
        model.decoder.mid_block.attentions[0].to_qkv.weight.mul_(3)
        model.decoder.mid_block.attentions[0].to_qkv.bias.add_(1)
    if not in_use:
        model.unfuse_qkv_projections()
    before = reconstruct(model)
    twin = plain(model)
    assert set(twin.state_dict()) == names
    assert set(model.state_dict()) > names  # it is left as it is
    torch.testing.assert_close(reconstruct(twin), before, rtol=0, atol=1e-5)
    torch.testing.assert_close(reconstruct(model.to_diffusers()), before, rtol=0, atol=1e-5)


def test_fused_projections_are_saved_as_those_they_were_made_of(tmp_path):
    model = make_kl()
    model.fuse_qkv_projections()
    with torch.no_grad():
        model.decoder.mid_block.attentions[0].to_qkv.weight.mul_(3)
    model.save_pretrained(tmp_path / "a")
    model.half().save_pretrained(tmp_path / "b", variant="fp16")
    (tmp_path / "b" / "diffusion_pytorch_model.fp16.safetensors").rename(tmp_path / "alone.safetensors")
    model.float()
    torch.testing.assert_close(
        reconstruct(load_autoencoder(tmp_path / "a")), reconstruct(model), rtol=0, atol=1e-2
    )
    torch.testing.assert_close(
        reconstruct(load_autoencoder(tmp_path / "alone.safetensors")), reconstruct(model), rtol=0, atol=1e-2
    )
    assert model.decoder.mid_block.attentions[0].fused_projections  # it is left as it is


def test_saving_a_model_with_adapters_warns(tmp_path):
    peft = pytest.importorskip("peft")
    model = make_kl()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.warns(UserWarning, match="export_autoencoder and to_diffusers merge"):
        model.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match=r"lacks \d+ tensors.*adapters"):
        load_autoencoder(tmp_path / "alone.safetensors")
    (tmp_path / "alone.safetensors").rename(tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"lack \d+ tensors.*adapters"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("state", ["on", "merged", "off"])
def test_adapters_are_merged(state):
    peft = pytest.importorskip("peft")
    model = make_kl()
    names, bare = set(model.state_dict()), reconstruct(model)
    settings = peft.LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
    model.add_adapter(settings, adapter_name="style")
    model.eval()
    if state == "off":
        model.disable_adapters()
    if state == "merged":
        model.fuse_lora()
    before = reconstruct(model)
    assert torch.equal(before, bare) == (state == "off")
    twin = copy.deepcopy(model)
    remarks = make_plain(twin)
    assert len(remarks) == (state != "off")
    assert all("style" in remark and "merged" in remark for remark in remarks)
    assert set(twin.state_dict()) == names
    torch.testing.assert_close(reconstruct(twin), before, rtol=0, atol=1e-4)
    torch.testing.assert_close(reconstruct(model.to_diffusers()), before, rtol=0, atol=1e-4)


def test_quantised_weights_become_floats():
    model = make_kl()
    layer = model.decoder.mid_block.attentions[0].to_q
    before = layer.weight.detach().clone()
    layer.weight = nn.Parameter(Quantised.of(before), requires_grad=False)
    (remark,) = dequantise(model)
    assert "quantised weights (Quantised)" in remark
    assert type(layer.weight) is nn.Parameter
    assert 0 < (layer.weight - before).abs().max() < before.abs().max() / 127


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.zeros(1, dtype=torch.int8), r"decoder\.conv_out\.bias is quantised to int8"),
        (torch.zeros(1, device="meta"), r"decoder\.conv_out\.bias is on the meta device"),
        (
            torch.zeros(1).as_subclass(type("Packed", (Tensor,), {})),
            r"bias is a Packed, which only",
        ),
    ],
)
def test_weights_that_cannot_be_read_are_named(weight, says):
    model = make_kl()
    model.decoder.conv_out.bias = nn.Parameter(weight, requires_grad=False)
    for use in (check_weights, plain):
        with pytest.raises(ValueError, match=says):
            use(model)


def test_parametrized_weights_are_refused_by_name():
    model = make_kl()
    nn.utils.parametrizations.weight_norm(model.decoder.conv_in)
    with pytest.raises(ValueError, match=r"^decoder\.conv_in computes .*remove_parametrizations"):
        model.to_diffusers()


@pytest.mark.parametrize("make", [make_kl, make_vq])
def test_projections_with_adapters_are_not_fused(make):
    peft = pytest.importorskip("peft")
    model = make()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False))
    names = set(model.state_dict())
    with pytest.raises(ValueError, match="to_v has an adapter"):
        model.fuse_qkv_projections()
    assert set(model.state_dict()) == names


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = {"compile": compiled, "DataParallel": nn.DataParallel, "checkpoint": checkpoint_wrapper}
STOCK = {KLVAE: AutoencoderKL, VQGAN: VQModel, TinyAutoencoder: AutoencoderTiny}


def make_any(cls):
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
    model, unwrapped = make_any(cls), make_any(cls)
    model.decoder = WRAPPERS[wrapper](model.decoder)
    state = model.state_dict()
    assert list(state) == list(unwrapped.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in unwrapped.state_dict().items())
    model.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    opened = load_autoencoder(tmp_path)
    assert torch.equal(opened(images).sample, unwrapped(images).sample)
    assert STOCK[cls].from_pretrained(tmp_path).state_dict().keys() == unwrapped.state_dict().keys()
    assert type(model.to_diffusers()) is STOCK[cls]
    assert torch.equal(model(images).sample, unwrapped(images).sample)


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
    unwrapped = make(KLVAE)
    model = make(KLVAE)
    model.decoder.mid_block = WRAPPERS[wrapper](model.decoder.mid_block)
    raw = {
        name.replace("decoder.mid_block.", "decoder.mid_block._orig_mod."): tensor
        for name, tensor in unwrapped.state_dict().items()
    }
    for state in (unwrapped.state_dict(), raw):
        for target in (model, unwrapped, nn.ModuleDict({"vae": model})):
            with torch.no_grad():
                next(target.parameters()).zero_()
            prefix = "vae." if isinstance(target, nn.ModuleDict) else ""
            result = target.load_state_dict({prefix + name: tensor.clone() for name, tensor in state.items()})
            assert (result.missing_keys, result.unexpected_keys) == ([], [])
            assert torch.equal(
                target.state_dict()[f"{prefix}encoder.conv_in.weight"], state["encoder.conv_in.weight"]
            )
    names = [f"vae.{name}" for name in unwrapped.state_dict()]
    assert list(nn.ModuleDict({"vae": model}).state_dict()) == names


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
    model.encoder = compiled(nn.DataParallel(encoder))
    model.decoder = compiled(decoder)
    twin = copy.deepcopy(model)
    unwrap(model)
    assert (model.encoder, model.decoder, model.decoder.mid_block) == (encoder, decoder, block)
    unwrap(twin)
    assert type(twin.encoder) is type(encoder)
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in model.named_parameters()]
