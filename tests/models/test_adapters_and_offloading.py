"""LoRA, original checkpoints and group offloading through diffusers' own methods."""

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from latentae import KLVAE, VQGAN, VQVAE
from latentae.models.checkpoints.layouts import to_ldm_names
from latentae.models.lean import make_lean
from tests.models.test_drop_in import build, output

OURS = (KLVAE, VQVAE, VQGAN)
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ATTENTION_AND_CONVOLUTIONS = [*ATTENTION, "conv1", "conv_out", "upsamplers.0.conv"]
DECODER = {"ch": 32, "ch_mult": [1, 2], "in_channels": 3, "out_ch": 3, "z_channels": 4, "num_res_blocks": 1}
CPU = torch.device("cpu")


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def lora(targets):
    """A configuration of LoRA that changes the output from the start."""
    torch.manual_seed(1)
    return LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)


@pytest.mark.parametrize("cls", [*OURS, AutoencoderKL])
def test_an_adapter_is_added_saved_removed_and_loaded(cls, images, tmp_path):
    model = build(cls)
    without = output(model, images)
    model.add_adapter(lora(ATTENTION), adapter_name="style")
    assert sum(isinstance(module, LoraLayer) for module in model.modules()) == 8
    with_adapter = output(model, images)
    assert (with_adapter - without).abs().max() > 1e-3
    model.save_lora_adapter(tmp_path, adapter_name="style")
    model.disable_adapters()
    assert torch.equal(output(model, images), without)
    model.unload_lora()
    assert not [module for module in model.modules() if isinstance(module, LoraLayer)]
    model.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert torch.equal(output(model, images), with_adapter)
    with pytest.raises(ValueError, match="Adapter name other not found"):
        model.save_lora_adapter(tmp_path, adapter_name="other")


@pytest.mark.parametrize("cls", [KLVAE, VQGAN])
@pytest.mark.parametrize("lean", ["before", "after"])
@pytest.mark.parametrize("targets", [ATTENTION, ATTENTION_AND_CONVOLUTIONS])
def test_lean_blocks_train_the_adapter(cls, lean, targets, images):
    stock, leaned = build(cls), build(cls)
    if lean == "before":
        make_lean(leaned)
    for model in (stock, leaned):
        model.requires_grad_(False).train()
        model.add_adapter(lora(targets))
    if lean == "after":
        make_lean(leaned)
    found = []
    for model in (stock, leaned):
        sample = model(images).sample
        sample.square().mean().backward()
        trained = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        assert all("lora" in name and gradient is not None for name, gradient in trained.items())
        found.append((sample, trained))
    (expected, gradients), (sample, others) = found
    torch.testing.assert_close(sample, expected, rtol=0, atol=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("given", ["config", "original_config"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_original_checkpoint_means_what_it_means_to_the_stock_class(
    prefix, given, dtype, images, tmp_path
):
    model = build(AutoencoderKL, norm_num_groups=32, block_out_channels=(32, 64), scaling_factor=0.13)
    state = to_ldm_names(model.state_dict())
    save_file(
        {prefix + name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors"
    )
    model.save_pretrained(tmp_path / "vae")
    parameters = {"scale_factor": 0.13, "first_stage_config": {"params": {"ddconfig": DECODER}}}
    (tmp_path / "original.yaml").write_text(yaml.safe_dump({"model": {"params": parameters}}))
    path = tmp_path / ("vae" if given == "config" else "original.yaml")
    stock, ours = (
        cls.from_single_file(str(tmp_path / "model.safetensors"), torch_dtype=dtype, **{given: str(path)})
        for cls in (AutoencoderKL, KLVAE)
    )
    assert type(ours) is KLVAE
    assert ours.dtype == dtype
    assert torch.equal(output(ours, images.to(dtype)), output(stock, images.to(dtype)))
    assert torch.allclose(output(ours.float(), images), output(model, images), atol=1e-2)
    for name in ("scaling_factor", "force_upcast", "latents_mean", "use_quant_conv", "norm_num_groups"):
        assert ours.config[name] == stock.config[name], name
    assert ours.config.shift_factor == 0.0
    again = KLVAE.from_config(ours.config)
    assert again.config.force_upcast is stock.config.force_upcast


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("lean", [False, True])
def test_group_offloading(level, on_disk, lean, images, tmp_path):
    model = build(KLVAE)
    expected = output(model, images)
    if lean:
        make_lean(model)
    options = {"num_blocks_per_group": 1} if level == "block_level" else {}
    if on_disk:  # only there is it seen that weights are read which nobody has fetched
        options["offload_to_disk_path"] = str(tmp_path)
    model.enable_group_offload(CPU, offload_type=level, **options)
    assert bool(list(tmp_path.glob("*.safetensors"))) is on_disk
    torch.testing.assert_close(output(model, images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images).sample.detach(), expected, rtol=0, atol=1e-5)
    posterior = model.encode(images).latent_dist  # what pipelines call, rather than the model
    torch.testing.assert_close(model.decode(posterior.mode()).sample.detach(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", [VQVAE, VQGAN])
def test_a_codebook_is_not_offloaded_in_groups(cls):
    with pytest.raises(ValueError, match=r"does not support group offloading.*exclude_modules"):
        build(cls).enable_group_offload(CPU, offload_type="leaf_level")
