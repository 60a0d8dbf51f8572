import torch
from torch import nn

from latentae.models.lean import make_lean
from latentae.training.passage import Passage
from tests.models.conftest import make


def test_the_first_call_is_remembered():
    module = nn.Linear(2, 2)
    first, second = torch.rand(1, 2, requires_grad=True), torch.rand(1, 2)
    with Passage(module) as passage:
        output = module(first)
        module(second)
    module(second)
    assert torch.equal(passage.inputs, first)
    assert not passage.inputs.requires_grad
    assert passage.output is output
    assert not module._forward_hooks


def test_it_can_be_entered_again():
    module = nn.Linear(2, 2)
    passage = Passage(module)
    for inputs in torch.rand(2, 1, 2):
        with passage:
            module(inputs)
        assert torch.equal(passage.inputs, inputs)


def test_a_lean_layer_tells_what_it_convolved():
    model, images = make(), torch.rand(1, 3, 8, 8) * 2 - 1
    with Passage(model.decoder.conv_out) as stock:
        model(images)
    expected = stock.inputs
    make_lean(model)
    with Passage(model.decoder.conv_out) as found:
        model(images)
    torch.testing.assert_close(found.inputs, expected, rtol=0, atol=1e-5)
    assert not found.inputs.requires_grad
