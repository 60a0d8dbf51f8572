import copy

import pytest
import torch
from torch import Tensor, nn

from latentae import load_autoencoder
from latentae.models.plain import check_weights, dequantise, make_plain, plain
from tests.export.conftest import make_kl, make_vq

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
