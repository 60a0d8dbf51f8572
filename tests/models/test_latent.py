import json
import warnings

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from latentae import KLVAE, VQGAN, VQVAE, load_autoencoder
from latentae.models import TinyAutoencoder
from tests.models.conftest import make


def test_latents_are_scaled_and_back(images):
    torch.manual_seed(0)
    model = make(VQGAN, scaling_factor=0.5, shift_factor=0.25)
    unscaled = model.encode(images).latents
    torch.testing.assert_close(model.to_latents(images), (unscaled - 0.25) * 0.5)
    torch.testing.assert_close(model.from_latents(model.to_latents(images)), model.decode(unscaled).sample)


def test_the_distribution_is_a_point(model, images):
    output = model.encode(images)
    assert torch.equal(output.latent_dist.mode(), output.latents)
    assert torch.equal(output.latent_dist.sample(torch.Generator()), output.latents)


def test_factor_and_last_layer(model):
    assert model.downsampling_factor == 2
    assert model.last_layer is model.decoder.conv_out


@pytest.fixture(params=[KLVAE, VQVAE, VQGAN])
def autoencoder(request):
    torch.manual_seed(0)
    return make(request.param)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 16, 16), r"\[B, 3, H, W\].*\[3, 16, 16\]"),
        (torch.zeros(1, 1, 16, 16), r"\[B, 3, H, W\].*\[1, 1, 16, 16\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"floating-point.*uint8.*/ 127\.5 - 1"),
        (torch.zeros(1, 3, 1, 16), "1x16 pixels are smaller than one latent"),
        (torch.zeros(1, 3, 16, 16).double(), r"images are float64 and the \w+ is float32.*\.to\(\)"),
        (torch.tensor([0.0, 255.0]).expand(1, 3, 16, 2), r"\[-1, 1\]; these run from 0 to 255.*/ 127\.5 - 1"),
        (torch.full((1, 3, 16, 16), -30.0), r"these run from -30 to -30$"),
        (torch.tensor([0.0, 11.0]).expand(1, 3, 16, 2), r"these run from 0 to 11"),
        (torch.full((1, 3, 16, 16), float("inf")), "these run from inf to inf$"),
        (torch.full((1, 3, 16, 16), float("nan")), "these run from nan to nan$"),
        (np.zeros((1, 3, 16, 16), dtype=np.float32), r"\[B, 3, H, W\].*got a ndarray$"),
        (None, r"\[B, 3, H, W\].*got a NoneType$"),
    ],
)
def test_images_that_cannot_be_encoded(autoencoder, images, message):
    with pytest.raises(ValueError, match=message):
        autoencoder.encode(images)
    with pytest.raises(ValueError, match=message):
        autoencoder(images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_range_in_other_dtypes(autoencoder, dtype):
    with pytest.raises(ValueError, match="from 0 to 255"):
        autoencoder.to(dtype).encode(torch.tensor([0.0, 255.0], dtype=dtype).expand(1, 3, 16, 2))


def test_images_that_only_seem_wrong(autoencoder):
    overshooting = autoencoder.encode(torch.full((1, 3, 16, 16), 1.2))  # as bicubic resizing does
    with torch.autocast("cpu", torch.bfloat16):  # which converts by itself
        converted = autoencoder.encode(torch.zeros(1, 3, 16, 16).bfloat16())
    for output in (overshooting, converted):
        assert output.latents.isfinite().all()
    outside = autoencoder.train()(torch.full((1, 3, 16, 16), 2.0))  # a loader answers for these
    assert outside.sample.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("scale", [1.6, 4.3, 9.9])
def test_other_normalisations_are_warned_of_once(autoencoder, scale):
    images = torch.linspace(-scale, scale, 768).reshape(1, 3, 16, 16)
    with pytest.warns(UserWarning, match=rf"in \[-1, 1\]; these run from -{scale} to {scale}"):
        first = autoencoder.encode(images).latents
    with warnings.catch_warnings(action="error"):
        assert torch.equal(autoencoder.encode(images).latents, first)
        autoencoder(images * 0.99)


def count_operations(autoencoder, images):
    """Encodes with the counter on; what it counted must not hold a range check."""
    with OperationCounter() as counter:
        autoencoder.encode(images)
    assert "aten.aminmax.default" not in counter.names
    assert "aten.convolution.default" in counter.names


class OperationCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def encode_with_a_hook(autoencoder, images):
    """A hook that scales what the encoder gets."""
    hook = autoencoder.encoder.register_forward_pre_hook(lambda _, given: (given[0] / 127.5 - 1,))
    autoencoder.encode(images)
    hook.remove()


def encode_through_accelerate(autoencoder, images):
    add_hook_to_module(autoencoder, ModelHook())
    autoencoder.encode(images)


def encode_fake(autoencoder, images):
    with FakeTensorMode(allow_non_fake_inputs=True):
        autoencoder.encode(torch.empty(images.shape))


WATCHERS = {
    "a hook": encode_with_a_hook,
    "accelerate": encode_through_accelerate,
    "a dispatch mode": count_operations,
    "fake tensors": encode_fake,
    "the meta device": lambda model, images: model.to("meta").encode(images.to("meta")),
    "a trace": lambda model, images: torch.jit.trace(
        lambda x: model.encode(x).latents, images, check_trace=False
    ),
    "vmap": lambda model, images: torch.vmap(lambda x: model.encode(x[None]).latents)(images),
    "export": lambda model, images: torch.export.export(model, (images,)),
}


@pytest.mark.filterwarnings("ignore")  # of tracing
@pytest.mark.parametrize("watcher", WATCHERS)
def test_the_range_is_not_checked_where_something_watches(autoencoder, watcher):
    autoencoder.requires_grad_(False)
    images = torch.full((1, 3, 16, 16), 200.0)
    with pytest.raises(ValueError, match="these run from 200 to 200"):
        autoencoder.encode(images)
    WATCHERS[watcher](autoencoder, images)  # does not raise


@pytest.mark.parametrize("cls", [KLVAE, VQGAN])
def test_a_compiled_model_is_one_graph_for_any_range(cls):
    torch._dynamo.reset()
    model = make(cls)
    encode = torch.compile(lambda x: model.encode(x).latents, fullgraph=True, backend="eager")
    assert encode(torch.full((1, 3, 16, 16), 200.0)).shape == (1, 4, 8, 8)


def test_no_images_at_all():
    model = make(KLVAE, mid_block_add_attention=False)
    assert model.encode(torch.zeros(0, 3, 16, 16)).latents.shape == (0, 4, 8, 8)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (
            torch.zeros(1, 3, 8, 8),
            r"decodes floating-point latents \[B, 4, h, w\]; got float32 \[1, 3, 8, 8\]",
        ),
        (None, "got a NoneType"),
        (torch.zeros(4, 8, 8), r"got float32 \[4, 8, 8\]"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), r"got int64 \[1, 4, 8, 8\]"),
        (torch.zeros(1, 4, 8, 8).half(), r"latents are float16 and the \w+ is float32"),
    ],
)
def test_latents_that_cannot_be_decoded(autoencoder, latents, message):
    with pytest.raises(ValueError, match=message):
        autoencoder.decode(latents)


def test_latents_have_no_range(autoencoder):
    assert autoencoder.decode(torch.full((1, 4, 8, 8), 100.0)).sample.shape == (1, 3, 16, 16)


def test_normalisation_by_channel(autoencoder, images):
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 0.5, 4.0]
    autoencoder.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    latents = autoencoder.to_latents(images, torch.Generator().manual_seed(0))
    raw = autoencoder.encode(images).latent_dist.sample(torch.Generator().manual_seed(0))
    expected = (raw - torch.tensor(mean)[:, None, None]) * 0.5 / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(autoencoder.from_latents(latents), autoencoder.decode(raw).sample)


def test_a_scale_that_is_not_known(images):
    model = make(KLVAE, scaling_factor=None)
    assert model(images).sample.shape == images.shape
    for method, inputs in ((model.to_latents, images), (model.from_latents, torch.zeros(1, 4, 8, 8))):
        with pytest.raises(ValueError, match=r"scripts/latent_stats\.py"):
            method(inputs)


@pytest.mark.parametrize("cls", [KLVAE, VQGAN, TinyAutoencoder])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scaling_factor": 0}, "scaling_factor is 0, but must be a positive, finite number"),
        ({"scaling_factor": -1.0}, "scaling_factor is -1.0"),
        ({"scaling_factor": float("nan")}, "scaling_factor is nan"),
        ({"scaling_factor": "0.5"}, "scaling_factor is '0.5'"),
        ({"shift_factor": float("inf")}, "shift_factor is inf, but must be a finite number"),
        (
            {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4},
            "latents_mean has 3 values, .* the 4 channels",
        ),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std is 0.0, .* positive"),
        ({"latents_mean": 3.0}, "latents_mean is 3.0, but must be a list"),
    ],
)
def test_a_normalisation_that_cannot_be_one(cls, changes, says, tmp_path):
    if cls is TinyAutoencoder and "latents_mean" in changes:
        pytest.skip("it has none")
    build = TinyAutoencoder if cls is TinyAutoencoder else lambda **changes: make(cls, **changes)
    with pytest.raises(ValueError, match=says):
        build(**changes)
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=rf"cannot be loaded: {says}"):
        load_autoencoder(tmp_path)
