"""Models whose weights are elsewhere when they are built or called: the meta device, accelerate's hooks."""

import copy

import pytest
import torch
from accelerate import cpu_offload, init_empty_weights
from accelerate.hooks import ModelHook, add_hook_to_module

from latentae import VQGAN, load_autoencoder
from tests.latents.conftest import SHAPE, make_kl

IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
TABLE = {"num_vq_embeddings": 32}
MODELS = {
    "vector": TABLE,
    "2017": {**TABLE, "backbone": "2017"},
    "ema": {**TABLE, "quantizer": {"type": "ema"}},
    "cosine": {**TABLE, "quantizer": {"type": "cosine"}},
    "simvq": {**TABLE, "quantizer": {"type": "simvq"}},
    "ibq": {**TABLE, "quantizer": {"type": "ibq"}},
    "fsq": {"quantizer": {"type": "fsq", "levels": [5, 5, 4, 4]}},
    "lfq": {"quantizer": {"type": "lfq", "bits": 4}},
    "residual": {**TABLE, "quantizer": {"type": "residual", "depth": 2, "member": {"type": "ema"}}},
    "grouped": {**TABLE, "quantizer": {"type": "grouped", "groups": 2, "member": {"type": "vector"}}},
}


def make(**changes):
    torch.manual_seed(0)
    model = VQGAN(**{**SHAPE, **changes}).eval()
    model.quantize.start(model.encode(IMAGES).latents, torch.manual_seed(0))
    return model


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def built_on_meta(model):
    with torch.device("meta"):
        return type(model).from_config(model.config)


def built_without_weights(model):
    with init_empty_weights():
        return type(model).from_config(model.config)


def assign(empty, weights):
    empty.load_state_dict(weights, assign=True)


def fill(empty, weights):
    empty.to_empty(device="cpu")
    for buffer in empty.buffers():  # what stands in memory that is not set
        buffer.fill_(77)
    empty.load_state_dict(weights)


def trained(model):
    """The model after a step of its quantizer, and what it then gives."""
    model.train()
    model(IMAGES)
    model.quantize.commit(1, torch.manual_seed(0))
    model.eval()
    with torch.no_grad():
        return model(IMAGES).sample


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("build", "load"), [(built_on_meta, assign), (built_on_meta, fill), (built_without_weights, assign)]
)
def test_weights_that_come_after_the_model(name, build, load):
    model = make(**MODELS[name])
    model.quantize.weights_changed()  # averages begin at the codes, as they do where these are loaded
    empty = build(model)
    load(empty, weights_of(model))
    assert not any(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    for key, expected in model.named_buffers():
        assert torch.equal(empty.get_buffer(key), expected), key
    with torch.no_grad():
        assert torch.equal(empty.eval()(IMAGES).sample, model(IMAGES).sample)
    assert torch.equal(trained(empty), trained(model))


def test_loading_again_leaves_the_upkeep_alone():
    model = make(**MODELS["ema"])
    empty = built_on_meta(model)
    assign(empty, weights_of(model))
    trained(empty)
    before = {key: buffer.clone() for key, buffer in empty.named_buffers()}
    empty.load_state_dict(weights_of(model))
    assert all(torch.equal(buffer, before[key]) for key, buffer in empty.named_buffers())


@pytest.mark.parametrize("name", ["vector", "ema", "fsq", "residual"])
@pytest.mark.parametrize(
    "options",
    [{"low_cpu_mem_usage": True}, {"low_cpu_mem_usage": False}, {"device_map": {"": "cpu"}}],
    ids=str,
)
def test_from_pretrained(name, options, tmp_path):
    model = make(**MODELS[name])
    model.save_pretrained(tmp_path)
    for opened in (VQGAN.from_pretrained(tmp_path, **options).eval(), load_autoencoder(tmp_path, **options)):
        with torch.no_grad():
            assert torch.equal(opened(IMAGES).sample, model(IMAGES).sample)


class Calls(ModelHook):
    count = 0

    def pre_forward(self, module, *arguments, **named):
        self.count += 1
        return arguments, named


def calls_of(model):
    """Every public method that computes with weights, on what it takes."""
    latents = model.encode(IMAGES).latents
    calls = {
        "forward": lambda other: other(IMAGES).sample,
        "encode": lambda other: other.encode(IMAGES).latents,
        "decode": lambda other: other.decode(latents).sample,
        "to_latents": lambda other: other.to_latents(IMAGES, torch.manual_seed(0)),
        "from_latents": lambda other: other.from_latents(latents),
        "tiled_encode": lambda other: other.tiled_encode(IMAGES),
        "tiled_decode": lambda other: other.tiled_decode(latents).sample,
    }
    if isinstance(model, VQGAN):
        indices = model.encode_indices(IMAGES)
        calls |= {
            "encode_indices": lambda other: other.encode_indices(IMAGES),
            "decode_indices": lambda other: other.decode_indices(indices),
            "codes_to_latents": lambda other: other.codes_to_latents(indices),
        }
    return calls


@pytest.mark.parametrize("name", ["kl", *MODELS])
@torch.no_grad()
def test_every_call_goes_through_the_hook_and_fetches_what_is_offloaded(name):
    model = make_kl() if name == "kl" else make(**MODELS[name])
    hooked, calls = add_hook_to_module(copy.deepcopy(model), hook := Calls()), calls_of(model)
    offloaded = copy.deepcopy(model)
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    for method, call in calls.items():
        expected = call(model)
        before = hook.count
        assert torch.equal(call(hooked), expected), method
        assert hook.count > before, method
        assert torch.equal(call(offloaded), expected), method
