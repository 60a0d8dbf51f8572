"""What diffusers' tests ask of its autoencoders, asked of ours and, to check the tests, of the stock classes.

As in diffusers' own tests the images are normal noise, if the fixture is called `noise`.
"""

import copy
import inspect
import json

import pytest
import torch
from accelerate import disk_offload
from diffusers import AutoencoderKL, VQModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.training_utils import EMAModel
from diffusers.utils import constants

from latentae import KLVAE, VQGAN, VQVAE
from tests.models.conftest import make

OURS = (KLVAE, VQVAE, VQGAN)
ALL = (*OURS, AutoencoderKL, VQModel)
# A stock VQModel has no slicing, tiling, checkpointing or choice of attention, and no codebook on disk.
ALL_BUT_VQ_MODEL = (*OURS, AutoencoderKL)
INDEX = "diffusion_pytorch_model.safetensors.index"


def build(cls, **changes):
    """A model of two levels with random weights."""
    torch.manual_seed(0)
    arguments = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return cls(**arguments | changes).eval()


@pytest.fixture
def noise():
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert images.abs().max() > 4
    return images


@torch.no_grad()
def output(model, images):
    """What the model returns first, as a tensor."""
    return model(images, return_dict=False)[0]


@torch.no_grad()
def moments(model, images):
    """What the encoder makes of images, as a tensor."""
    encoded = model.encode(images, return_dict=False)[0]
    return encoded if isinstance(encoded, torch.Tensor) else encoded.parameters


def assert_close(first, second, atol=1e-5):
    torch.testing.assert_close(first, second, rtol=0, atol=atol)


pytestmark = pytest.mark.filterwarnings("ignore:.*encodes images in:UserWarning")
every = pytest.mark.parametrize("cls", ALL)
all_but_vq_model = pytest.mark.parametrize("cls", ALL_BUT_VQ_MODEL)
half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@every
def test_two_calls_give_the_same(cls, noise):
    model = build(cls)
    first = output(model, noise)
    assert first.shape == noise.shape
    assert torch.equal(first, output(model, noise))
    assert torch.equal(first, output(copy.deepcopy(model), noise))


@every
@torch.no_grad()
def test_tuples_hold_what_the_dataclasses_hold(cls, noise):
    model = build(cls)
    encoded = model.encode(noise)
    latents = encoded[0].mode() if issubclass(cls, AutoencoderKL) else encoded[0]
    calls = ((model, noise), (model.encode, noise), (model.decode, latents))
    for call, argument in calls:
        fields = call(argument).to_tuple()
        values = call(argument, return_dict=False)
        for value, expected in zip(values, fields, strict=False):
            if not isinstance(value, torch.Tensor):
                value, expected = value.parameters, expected.parameters
            assert_close(value, expected, atol=0)


@every
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_saved_and_loaded(cls, noise, tmp_path, low_cpu_mem_usage):
    model = build(cls)
    model.save_pretrained(tmp_path)
    loaded, info = cls.from_pretrained(
        tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, output_loading_info=True
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == cls.__name__
    assert not loaded.training
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert torch.equal(output(loaded, noise), output(model, noise))


@every
@half
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_saved_and_loaded_in_half_precision(cls, dtype, noise, tmp_path, low_cpu_mem_usage):
    model = build(cls).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low_cpu_mem_usage)
    assert loaded.dtype == dtype
    assert {value.dtype for value in loaded.parameters()} == {dtype}
    assert_close(output(loaded, noise.to(dtype)), output(model, noise.to(dtype)), atol=5e-3)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_float32_weights_load_in_another_precision(cls, dtype, noise, tmp_path):
    build(cls).save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path, torch_dtype=dtype)
    assert loaded._keep_in_fp32_modules is None
    assert {value.dtype for value in loaded.parameters()} == {dtype}
    assert output(loaded, noise.to(dtype)).dtype == dtype


@every
def test_variants(cls, noise, tmp_path):
    model = build(cls)
    model.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert torch.equal(output(cls.from_pretrained(tmp_path, variant="fp16"), noise), output(model, noise))
    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.bin"):
        cls.from_pretrained(tmp_path)


@every
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("parallel", [False, True])
def test_shards(cls, noise, tmp_path, variant, parallel, monkeypatch):
    model = build(cls)
    size = sum(value.nbytes for value in model.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size=f"{int(0.4 * size / 1024)}KB", variant=variant)
    index = tmp_path / f"{INDEX}{'.' + variant if variant else ''}.json"
    files = set(json.loads(index.read_text())["weight_map"].values())
    assert files == {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(files) > 2
    monkeypatch.setattr(constants, "HF_ENABLE_PARALLEL_LOADING", parallel)
    monkeypatch.setattr(constants, "DEFAULT_HF_PARALLEL_LOADING_WORKERS", 2)
    loaded = cls.from_pretrained(tmp_path, variant=variant)
    assert torch.equal(output(loaded, noise), output(model, noise))


@every
def test_other_norm_groups(cls, noise):
    model = build(cls, norm_num_groups=16, block_out_channels=(16, 32))
    assert {m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)} == {16}
    assert output(model, noise).shape == noise.shape


@every
def test_from_its_own_config(cls, noise):
    model = build(cls, norm_num_groups=2)
    again = cls.from_config(model.config)
    assert dict(again.config) == dict(model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(output(again.eval(), noise), output(model, noise))
    again, unused = cls.from_config(dict(model.config), return_unused_kwargs=True, never_heard_of=1)
    assert unused == {"never_heard_of": 1}


@every
def test_attributes_come_from_the_config_with_a_warning(cls, recwarn):
    model = build(cls)
    model.own = 5
    assert model.own == 5
    assert not [w for w in recwarn if issubclass(w.category, FutureWarning)]
    with pytest.warns(FutureWarning):
        assert model.latent_channels == 4
    with pytest.raises(AttributeError, match=f"'{cls.__name__}' object has no attribute 'other'"):
        _ = model.other


@every
def test_a_step_with_averaged_weights(cls, noise):
    model = build(cls).train()
    average = EMAModel(model.parameters())
    before = [parameter.clone() for parameter in average.shadow_params]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.nn.functional.mse_loss(model(noise, return_dict=False)[0], noise)
    loss.backward()
    assert {name for name, value in model.named_parameters() if value.grad is None} <= {
        "quantize.embedding.weight"
    }
    optimizer.step()
    average.step(model.parameters())
    moved = [not torch.equal(*pair) for pair in zip(before, average.shadow_params, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = torch.nn.functional.mse_loss(model(noise, return_dict=False)[0].float(), noise)
    assert mixed.isfinite()


@all_but_vq_model
def test_gradient_checkpointing(cls, noise):
    plain, checkpointed = build(cls).train(), build(cls).train()
    assert not checkpointed.is_gradient_checkpointing
    checkpointed.enable_gradient_checkpointing()
    assert checkpointed.is_gradient_checkpointing
    switched = {
        type(m).__name__ for m in checkpointed.modules() if getattr(m, "gradient_checkpointing", False)
    }
    assert switched == {"Encoder", "Decoder", "UNetMidBlock2D"}
    target = noise.flip(-1)
    losses = []
    for model in (plain, checkpointed):
        losses.append((model(noise, return_dict=False)[0] * target).mean())
        losses[-1].backward()
    assert_close(losses[1], losses[0])
    for (name, value), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (value.grad is None) == (other.grad is None), name
        if value.grad is not None:
            assert_close(other.grad, value.grad, atol=5e-5)
    checkpointed.disable_gradient_checkpointing()
    assert not checkpointed.is_gradient_checkpointing


@all_but_vq_model
def test_attention_processors(cls, noise):
    model = build(cls)
    expected = output(model, noise)
    assert {type(p) for p in model.attn_processors.values()} == {AttnProcessor2_0}
    names = {f"{part}.mid_block.attentions.0.processor" for part in ("encoder", "decoder")}
    assert model.attn_processors.keys() == names
    model.set_attn_processor(AttnProcessor())
    assert_close(output(model, noise), expected)
    model.set_attn_processor({name: AttnProcessor2_0() for name in model.attn_processors})
    assert torch.equal(output(model, noise), expected)
    model.set_default_attn_processor()
    assert {type(p) for p in model.attn_processors.values()} == {AttnProcessor}
    with pytest.raises(ValueError, match="number of attention layers"):
        model.set_attn_processor({"one": AttnProcessor()})


@all_but_vq_model
def test_fused_projections(cls, noise):
    model = build(cls)
    expected = output(model, noise)
    model.fuse_qkv_projections()
    assert {type(p).__name__ for p in model.attn_processors.values()} == {"FusedAttnProcessor2_0"}
    assert all(m.fused_projections for m in model.modules() if hasattr(m, "fused_projections"))
    assert_close(output(model, noise), expected)
    model.unfuse_qkv_projections()
    assert torch.equal(output(model, noise), expected)


@all_but_vq_model
def test_slicing_and_tiling_on_and_off(cls, noise):
    model = build(cls, sample_size=32)
    expected = output(model, noise)
    for on, off in (
        (model.enable_slicing, model.disable_slicing),
        (model.enable_tiling, model.disable_tiling),
    ):
        on()
        assert_close(output(model, noise), expected)
        off()
        assert torch.equal(output(model, noise), expected)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_layerwise_casting(cls, dtype, noise):
    model, reference = build(cls), build(cls)
    size = model.get_memory_footprint()
    model.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32)
    assert model.get_memory_footprint() < 0.7 * size
    assert model.encoder.conv_in.weight.dtype == dtype
    found, expected = (moments(each, noise) for each in (model, reference))  # before other codes are chosen
    assert found.dtype == output(model, noise).dtype == torch.float32
    assert (found - expected).norm() < (2e-3 if dtype == torch.float16 else 0.1) * expected.norm()


@all_but_vq_model
def test_pickled_weights_on_disk(cls, noise, tmp_path):
    model = build(cls)
    model.save_pretrained(tmp_path / "model", safe_serialization=False)
    assert (tmp_path / "model/diffusion_pytorch_model.bin").is_file()
    memory = {"cpu": sum(value.nbytes for value in model.parameters()) // 3}
    options = {"device_map": "auto", "max_memory": memory}
    with pytest.raises(ValueError, match="offload_folder"):
        cls.from_pretrained(tmp_path / "model", **options)
    loaded = cls.from_pretrained(tmp_path / "model", **options, offload_folder=tmp_path / "weights")
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(output(loaded, noise), output(model, noise))


@all_but_vq_model
@pytest.mark.parametrize("kept", ["encoder", "decoder"])
def test_weights_on_disk(cls, noise, tmp_path, kept):
    model = build(cls)
    expected = output(model, noise)
    model.save_pretrained(tmp_path / "model")
    parts = {name: "disk" for name, _ in model.named_children()} | {kept: "cpu"}
    loaded = cls.from_pretrained(tmp_path / "model", device_map=parts, offload_folder=tmp_path / "weights")
    assert {value.device.type for value in loaded.parameters()} == {"cpu", "meta"}
    assert torch.equal(output(loaded, noise), expected)
    disk_offload(model, tmp_path / "all", execution_device=torch.device("cpu"))
    assert {value.device.type for value in model.parameters()} == {"meta"}
    assert torch.equal(output(model, noise), expected)


@pytest.fixture(params=[KLVAE, VQVAE, VQGAN])
def model(request):
    torch.manual_seed(0)
    return make(request.param)


def config_of(model):
    """As it is after a file, where tuples are lists."""
    return json.loads(json.dumps({key: value for key, value in model.config.items() if key[0] != "_"}))


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


def test_subfolder(model, tmp_path):
    model.save_pretrained(tmp_path / "vae")
    loaded = type(model).from_pretrained(tmp_path, subfolder="vae").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("device_map", ["auto", "balanced", "cpu", {"": "cpu"}])
def test_device_map(model, images, tmp_path, device_map):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(loaded(images).sample, model(images).sample)


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


def test_channels_last(model, images):
    expected = model(images).sample
    model.to(memory_format=torch.channels_last)
    output = model(images.to(memory_format=torch.channels_last)).sample
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@half
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
