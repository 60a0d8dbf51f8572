"""ONNX files of the models, run by onnxruntime at sizes other than those they were exported with."""

import contextlib
import io
import warnings

import pytest
import torch
from torch import nn

from latentae import KLVAE, VQGAN
from latentae.quantizers import create_quantizer
from tests.latents.conftest import SHAPE

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

GENERATOR = torch.Generator()
TABLES = {"num_vq_embeddings": 32}


class Step(nn.Module):
    """One method of a model, as a module that returns a tensor."""

    def __init__(self, model, method):
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, inputs):
        result = getattr(self.model, self.method)(inputs)
        return {"decode": lambda: result.sample, "encode": lambda: result.latents}.get(
            self.method, lambda: result
        )()


def make_vq(**changes):
    torch.manual_seed(0)
    model = VQGAN(**{**SHAPE, **changes}).eval()
    model.quantize.start(model.encode(draw_images(2, 16, 16)).latents, torch.manual_seed(0))
    return model


def draw_images(*size):
    return torch.rand(size[0], 3, *size[1:], generator=GENERATOR.manual_seed(1)) * 2 - 1


def draw_inputs(model, method, batch, height, width):
    """Inputs of a method whose images have this size."""
    images = draw_images(batch, height, width)
    if method in ("encode", "encode_indices"):
        return images
    if method == "decode":
        return torch.randn(model.encode(images).latents.shape, generator=GENERATOR.manual_seed(2))
    return model.encode_indices(images)


def export(step, inputs, path, *, dynamo):
    last = inputs.ndim - 1
    axes = {"inputs": {0: "batch", last - 1: "height", last: "width"}}
    sizes = {"dynamic_shapes": axes, "optimize": False} if dynamo else {"dynamic_axes": axes}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(step, (inputs,), path, dynamo=dynamo, input_names=["inputs"], **sizes)


def assert_same(model, method, tmp_path, *, dynamo):
    step, path = Step(model, method).eval(), tmp_path / "model.onnx"
    with torch.no_grad():
        export(step, draw_inputs(model, method, 2, 16, 24), path, dynamo=dynamo)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for size in ((2, 16, 24), (3, 32, 20), (1, 17, 11)):
            inputs = draw_inputs(model, method, *size)
            expected = step(inputs)
            (found,) = session.run(None, {"inputs": inputs.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("method", ["decode", "encode_indices", "decode_indices"])
def test_a_vq_model(method, dynamo, tmp_path):
    assert_same(make_vq(**TABLES), method, tmp_path, dynamo=dynamo)


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_a_kl_vae(method, tmp_path):
    torch.manual_seed(0)
    assert_same(KLVAE(**SHAPE).eval(), method, tmp_path, dynamo=False)


@pytest.mark.parametrize(
    "quantizer",
    [
        {"type": "cosine"},
        {"type": "simvq"},
        {"type": "ibq"},
        {"type": "residual", "depth": 2, "member": {"type": "vector"}},
        {"type": "grouped", "groups": 2, "member": {"type": "vector"}},
        {"type": "fsq", "levels": [5, 5, 4, 4]},
        {"type": "bsq", "bits": 4},
    ],
    ids=lambda quantizer: quantizer["type"],
)
def test_every_quantizer(quantizer, tmp_path):
    sizes = {} if quantizer["type"] in ("fsq", "bsq") else TABLES
    model = make_vq(quantizer=quantizer, **sizes)
    assert_same(model, "encode_indices", tmp_path, dynamo=False)
    assert_same(model, "decode_indices", tmp_path, dynamo=False)


class ThereAndBack(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, inputs):
        indices = self.quantizer.indices(inputs)
        return indices, self.quantizer.codes(indices)


def test_bits_by_the_exporter_without_shifts(tmp_path):
    step = ThereAndBack(create_quantizer("lfq", bits=5)).eval()
    latents = torch.randn(2, 5, 3, 4, generator=GENERATOR.manual_seed(3))
    export(step, latents, tmp_path / "model.onnx", dynamo=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"inputs": latents.numpy()})
    assert all(
        torch.equal(torch.from_numpy(mine), theirs) for mine, theirs in zip(found, step(latents), strict=True)
    )


def test_a_program_of_torch_export_keeps_the_exact_look_up_until_it_becomes_onnx(tmp_path):
    model = make_vq(**TABLES)
    inputs = draw_inputs(model, "encode_indices", 2, 16, 24)
    with torch.no_grad():
        program = torch.export.export(Step(model, "encode_indices").eval(), (inputs,))
    assert "latentae.nearest_code" in program.run_decompositions().graph_module.code
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(program, (), tmp_path / "model.onnx", dynamo=True, optimize=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert torch.equal(torch.from_numpy(found), model.encode_indices(inputs))
