"""What diffusers' own tests ask of its autoencoders, asked of ours."""

import copy
import inspect
import json

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.training_utils import EMAModel

from latentae import KLVAE, VQGAN, VQVAE
from tests.models.conftest import make


@pytest.fixture(params=[KLVAE, VQVAE, VQGAN])
def model(request):
    torch.manual_seed(0)
    return make(request.param)


def weights_equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def config_of(model):
    """As it is after a file, where tuples are lists."""
    return json.loads(json.dumps({key: value for key, value in model.config.items() if key[0] != "_"}))


def test_the_same_twice(model, images):
    assert torch.equal(model(images).sample, model(images).sample)
    assert torch.equal(copy.deepcopy(model)(images).sample, model(images).sample)


def test_saved_and_loaded(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert weights_equal(loaded, model)
    assert torch.equal(loaded(images).sample, model(images).sample)
    assert config_of(loaded) == config_of(model)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == type(model).__name__
    assert all(not tensor.is_meta for tensor in loaded.buffers())


def test_an_ema_codebook_is_whole_after_loading(tmp_path):
    model = make(VQVAE, quantizer={"type": "ema", "decay": 0.9, "init": "uniform"})
    model.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path)
    assert loaded.quantize.decay == 0.9
    assert [name for name, tensor in loaded.named_buffers() if tensor.is_meta] == []
    loaded.quantize.start(torch.zeros(1, 4, 1, 1), torch.Generator())
    assert torch.equal(loaded.quantize.upkeep["average_sums"], loaded.quantize.embedding.weight)


def test_config_round_trip(model, tmp_path):
    changed = make(type(model), scaling_factor=0.5, shift_factor=0.25, latents_mean=[1.0] * 4, sample_size=64)
    changed.save_config(tmp_path)
    again = type(model).from_config(type(model).load_config(tmp_path))
    assert config_of(again) == config_of(changed)
    assert (again.config.scaling_factor, again.config.shift_factor) == (0.5, 0.25)
    with pytest.raises(TypeError, match="scalingfactor"):
        make(type(model), scalingfactor=1.0)


def test_variant(model, tmp_path):
    model.save_pretrained(tmp_path, variant="ema")
    assert (tmp_path / "diffusion_pytorch_model.ema.safetensors").exists()
    assert weights_equal(type(model).from_pretrained(tmp_path, variant="ema"), model)
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(model, tmp_path, variant):
    model.save_pretrained(tmp_path, max_shard_size="40KB", variant=variant)
    infix = "" if variant is None else f".{variant}"
    index = json.loads((tmp_path / f"diffusion_pytorch_model.safetensors.index{infix}.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1
    assert all((tmp_path / file).is_file() for file in files)
    assert weights_equal(type(model).from_pretrained(tmp_path, variant=variant), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torch_dtype(model, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert loaded.dtype == dtype


def test_subfolder(model, tmp_path):
    model.save_pretrained(tmp_path / "vae")
    assert weights_equal(type(model).from_pretrained(tmp_path, subfolder="vae"), model)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "cpu", {"": "cpu"}])
def test_device_map(model, images, tmp_path, device_map):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(loaded(images).sample, model(images).sample)


def test_weights_left_on_disk(model, images, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    loaded = type(model).from_pretrained(
        tmp_path, device_map="auto", max_memory={"cpu": 20_000}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in loaded.hf_device_map.values()
    assert torch.equal(loaded(images).sample, model(images).sample)


def test_tuples_are_what_dictionaries_hold(model, images):
    latents = model.encode(images).latents
    for call, inputs in ((model, images), (model.encode, images), (model.decode, latents)):
        by_name, by_place = call(inputs), call(inputs, return_dict=False)
        assert isinstance(by_place, tuple)
        for ours, theirs in zip(by_place, by_name.to_tuple(), strict=False):
            if not isinstance(ours, torch.Tensor):
                ours, theirs = ours.parameters, theirs.parameters
            assert torch.equal(ours, theirs)


def test_forward_keeps_the_stock_signature(model, images):
    parameters = inspect.signature(model.forward).parameters
    assert list(parameters)[:4] == ["sample", "sample_posterior", "return_dict", "generator"]
    assert [p.default for p in list(parameters.values())[1:4]] == [False, True, None]
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    first, second = (model(images, sample_posterior=True, generator=g).sample for g in generators)
    assert torch.equal(first, second)


def test_training_step(model, images):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        output = model(images)
        loss = (output.sample - images).square().mean()
        (loss + (output.commit_loss or 0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_ema_model(model, images, tmp_path):
    start = copy.deepcopy(model)
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=type(model), model_config=model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    ema.optimization_step = 100
    ema.step(model.parameters())
    ema.save_pretrained(tmp_path)
    averaged = type(model).from_pretrained(tmp_path)
    for before, after in zip(start.parameters(), averaged.parameters(), strict=True):
        expected = before + (0.5 if before.requires_grad else 0)
        torch.testing.assert_close(after, expected)


def test_gradient_checkpointing(model, images):
    def gradients():
        model.zero_grad()
        model(images).sample.square().mean().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    assert not model.is_gradient_checkpointing
    expected = gradients()
    model.enable_gradient_checkpointing()
    assert model.encoder.gradient_checkpointing
    assert model.decoder.gradient_checkpointing
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing


def test_attention_processors(model, images):
    expected = model(images).sample
    names = {f"{part}.mid_block.attentions.0.processor" for part in ("encoder", "decoder")}
    assert model.attn_processors.keys() == names
    assert {type(processor) for processor in model.attn_processors.values()} == {AttnProcessor2_0}
    model.set_attn_processor({name: AttnProcessor() for name in names})
    assert {type(processor) for processor in model.attn_processors.values()} == {AttnProcessor}
    torch.testing.assert_close(model(images).sample, expected, rtol=1e-4, atol=1e-4)
    model.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(model(images).sample, expected)
    model.set_default_attn_processor()
    assert {type(processor) for processor in model.attn_processors.values()} == {AttnProcessor}
    with pytest.raises(ValueError, match="number of processors"):
        model.set_attn_processor({})


def test_fused_projections(model, images):
    expected = model(images).sample
    model.fuse_qkv_projections()
    assert model.encoder.mid_block.attentions[0].to_qkv.weight.shape == (48, 16)
    torch.testing.assert_close(model(images).sample, expected)
    model.unfuse_qkv_projections()
    assert {type(processor) for processor in model.attn_processors.values()} == {AttnProcessor2_0}
    assert torch.equal(model(images).sample, expected)


def test_channels_last(model, images):
    expected = model(images).sample
    model.to(memory_format=torch.channels_last)
    output = model(images.to(memory_format=torch.channels_last)).sample
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model, images, dtype):
    latents = model.encode(images).latents
    decoded = model.decode(latents).sample
    half = copy.deepcopy(model).to(dtype)
    assert half(images.to(dtype)).sample.dtype == dtype
    tolerance = 20 * torch.finfo(dtype).eps
    encoded = half.encode(images.to(dtype)).latents
    torch.testing.assert_close(encoded.float(), latents, rtol=0, atol=tolerance * latents.abs().max().item())
    # the same latents in both, as rounding them may move one across a boundary between codes
    if isinstance(model, VQVAE):
        latents = model.quantize(latents).quantized
        decoded = model.decode(latents, force_not_quantize=True).sample
        again = half.decode(latents.to(dtype), force_not_quantize=True).sample
    else:
        again = half.decode(latents.to(dtype)).sample
    torch.testing.assert_close(again.float(), decoded, rtol=0, atol=tolerance * decoded.abs().max().item())


def test_weights_stored_in_fewer_bits(model, images):
    expected = model(images).sample
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert model.encoder.conv_in.weight.dtype == torch.bfloat16
    output = model(images).sample
    assert output.dtype == torch.float32
    assert (output - expected).abs().mean() < 0.2 * expected.std()  # a few codes are others


def test_autocast(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    assert output.sample.dtype == torch.bfloat16
    assert model.encoder.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize("cls", [KLVAE, VQGAN])
@pytest.mark.parametrize("part", ["encode", "decode"])
def test_one_graph(cls, images, part):
    torch._dynamo.reset()
    model = make(cls)
    inputs = images if part == "encode" else torch.randn(2, 4, 8, 12)
    compiled = torch.compile(getattr(model, part), fullgraph=True, backend="eager")
    result, expected = compiled(inputs), getattr(model, part)(inputs)
    assert type(result) is type(expected)
    name = "latents" if part == "encode" else "sample"
    torch.testing.assert_close(getattr(result, name), getattr(expected, name))


def test_one_graph_of_the_training_forward(images):
    torch._dynamo.reset()
    model = make(VQGAN).train()
    output = torch.compile(model, fullgraph=True, backend="eager")(images)
    torch.testing.assert_close(output.sample, model(images).sample)
    assert output.keys() == model(images).keys()
