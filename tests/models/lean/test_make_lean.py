import copy

import pytest
import torch
from diffusers import AutoencoderKL

from latentae import KLVAE
from latentae.models.lean import make_lean, make_stock
from tests.models.lean.conftest import KINDS, gradients, make_pair
from tests.processes import launch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_and_gradients_are_the_stock_model_s(kind, checkpointing, images):
    stock, lean = make_pair(kind)
    if checkpointing:
        lean.enable_gradient_checkpointing()
    torch.testing.assert_close(lean(images).sample, stock(images).sample, rtol=0, atol=1e-12)
    expected, found = gradients(stock, images), gradients(lean, images)
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10 * scale, msg=name)


def test_every_block_of_a_usual_model_is_exchanged():
    stock, lean = make_pair()
    # Encoder: 2 + 2 residual blocks (levels, middle), attention at a level and in the middle, the last norm;
    # decoder: 2 · 2 + 2 blocks, 2 + 1 attentions, one upsampling, the last norm.
    assert make_lean(copy.deepcopy(stock)) == (2 + 2 + 1 + 1 + 1) + (4 + 2 + 2 + 1 + 1 + 1)
    assert make_lean(lean) == 0  # already


def test_what_does_not_fit_is_left_alone():
    stock, _ = make_pair()
    stock.encoder.mid_block.resnets[0].dropout.p = 0.1
    stock.decoder.up_blocks[0].resnets[0].nonlinearity = torch.nn.GELU()
    stock.decoder.mid_block.attentions[0].fuse_projections()
    make_lean(stock)
    assert type(stock.encoder.mid_block.resnets[0]).__name__ == "ResnetBlock2D"
    assert type(stock.decoder.up_blocks[0].resnets[0]).__name__ == "ResnetBlock2D"
    assert type(stock.decoder.mid_block.attentions[0].processor).__name__ == "AttnProcessor2_0"
    assert type(stock.encoder.mid_block.resnets[1]).__name__ == "LeanResnetBlock2D"


def test_names_weights_and_files_stay(images, tmp_path):
    stock, lean = make_pair(dtype=torch.float32)
    assert list(lean.state_dict()) == list(stock.state_dict())
    lean.save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    images = images.float()
    with torch.no_grad():
        expected = stock(images).sample
        for same in (lean, loaded, KLVAE.from_pretrained(tmp_path), lean.to_diffusers()):
            torch.testing.assert_close(same(images).sample, expected, rtol=1e-5, atol=1e-5)
    assert type(lean.to_diffusers().encoder.conv_norm_out) is torch.nn.GroupNorm


def test_it_can_be_undone(images):
    stock, lean = make_pair()
    make_stock(lean)
    kinds = ([type(module) for module in model.modules()] for model in (stock, lean))
    assert next(kinds) == next(kinds)
    assert torch.equal(lean(images).sample, stock(images).sample)
    assert type(lean.decoder.mid_block.attentions[0].processor).__name__ == "AttnProcessor2_0"


def test_it_keeps_less_than_half_for_the_backward_pass(images):
    kept = [0, 0]
    for number, model in enumerate(make_pair()):
        storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor, number=number, storages=storages):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in storages:
                storages.add(storage.data_ptr())
                kept[number] += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(images.repeat(1, 1, 4, 4))
        del output
    assert kept[1] < 0.5 * kept[0]


def test_a_frozen_encoder_gets_no_gradient(images):
    stock, lean = make_pair()
    found = []
    for model in (stock, lean):
        model.encoder.requires_grad_(False)
        model.decoder.up_blocks[0].resnets[0].conv1.weight.requires_grad_(False)
        model(images).sample.square().sum().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert {name for name, gradient in found[0].items() if gradient is None} == {
        name for name, gradient in found[1].items() if gradient is None
    }
    for name, gradient in found[0].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9)


def test_under_autocast_it_is_as_close_to_float32_as_the_stock_model(images):
    stock, lean = make_pair(dtype=torch.float32)
    images = images.float()
    expected = gradients(stock, images)

    def error(model):
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(model, images)
        assert all(found[name].dtype == torch.float32 for name in found)
        return {name: (found[name] - expected[name]).norm() / expected[name].norm() for name in found}

    ours, theirs = error(lean), error(stock)
    assert torch.stack(list(ours.values())).mean() < 1.2 * torch.stack(list(theirs.values())).mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_hooks_on_layers_are_called_with_gradients_too(kind, checkpointing, images):
    pair = make_pair(kind)
    for model in pair:
        if checkpointing:
            model.enable_gradient_checkpointing()
        for module in model.modules():
            if isinstance(module, torch.nn.GroupNorm | torch.nn.Conv2d | torch.nn.Linear):
                module.register_forward_hook(lambda _, inputs, output: output * 1.1)
    expected, found = (gradients(model, images) for model in pair)
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-10 * scale, msg=name)


def test_a_last_convolution_that_is_exchanged_gets_activated_inputs(images):
    stock, lean = make_pair()
    for model in (stock, lean):
        torch.manual_seed(3)
        model.decoder.conv_out = torch.nn.Conv2d(8, 3, 1).to(torch.float64)
    torch.testing.assert_close(lean(images).sample, stock(images).sample, rtol=0, atol=1e-12)


def test_a_level_can_be_compiled():
    _, lean = make_pair()
    level = lean.decoder.up_blocks[0]  # residual blocks, attention and upsampling
    inputs = torch.randn(2, 16, 4, 3, dtype=torch.float64, requires_grad=True)
    wanted = [inputs, *level.parameters()]
    expected = torch.autograd.grad(level(inputs).square().sum(), wanted)
    compiled = torch.compile(level, backend="eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(inputs).square().sum(), wanted), expected)


def test_a_second_derivative_is_refused(images):
    _, lean = make_pair()
    images = images.requires_grad_()
    (gradient,) = torch.autograd.grad(lean(images).sample.sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


RANKS = """
import torch
from torch.nn.parallel import DistributedDataParallel
from tests.models.lean.conftest import gradients, make_pair

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
stock, lean = make_pair()
images = torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
wrapped = DistributedDataParallel(lean)
wrapped(images[2 * rank : 2 * rank + 2]).sample.square().mean().backward()
stock(images).sample.square().mean().backward()
compared = 0
for (name, parameter), other in zip(stock.named_parameters(), lean.parameters(), strict=True):
    torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-9, atol=1e-10, msg=name)
    compared += 1
print(f"rank {rank}: {compared} gradients are equal")
torch.distributed.destroy_process_group()
"""


def test_two_ranks_get_the_gradient_of_the_whole_batch(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    parameters = len(list(make_pair()[0].parameters()))
    printed = sorted(launch(script, 2).stdout.splitlines())
    assert printed == [f"rank {rank}: {parameters} gradients are equal" for rank in (0, 1)]
