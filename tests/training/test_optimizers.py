import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from latentae.training import optimizers
from latentae.training.optimizers import Muon, adamw, adamw8bit, keep_settings, orthogonalise

ADAM = {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.0, "eps": 1e-8}
MUON = {**ADAM, "momentum": 0.9, "update_rms": 0.2}


def test_adamw_leaves_frozen_parameters_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = adamw(model, **ADAM)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 2
    assert group["betas"] == (0.5, 0.9)
    model(torch.ones(1, 2)).sum().backward()
    before = model[0].bias.clone()
    optimizer.step()
    # Adam's first step is the learning rate in the direction of the gradient's sign.
    torch.testing.assert_close((before - model[0].bias).abs(), torch.full((2,), 0.1))


def test_adamw_skips_a_step_under_a_flag():
    """What the guard builds on: torch's fused kernel leaves weights and averages alone, NaN or not."""
    model = nn.Linear(2, 1)
    optimizer = adamw(model, **ADAM)
    for value, flag in ((1.0, 0.0), (float("nan"), 1.0)):
        model.weight.grad = torch.full_like(model.weight, value)
        before = model.weight.clone(), *(x.clone() for x in optimizer.state.get(model.weight, {}).values())
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(flag), None
        optimizer.step()
    after = model.weight, *optimizer.state[model.weight].values()
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert optimizer.state[model.weight]["step"] == 1


class FakeAdamW8bit(torch.optim.SGD):
    def __init__(self, params, lr, betas, eps, weight_decay):
        super().__init__(params, lr=lr)
        self.given = (lr, betas, eps, weight_decay)


def test_adamw8bit_is_that_of_bitsandbytes(monkeypatch):
    library = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=FakeAdamW8bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    optimizer = adamw8bit(model, **ADAM)
    assert isinstance(optimizer, FakeAdamW8bit)
    assert optimizer.given == (0.1, (0.5, 0.9), 1e-8, 0.0)
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_adamw8bit_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # which makes an import fail
    with pytest.raises(ValueError, match=r"optimizer\.type is adamw8bit.*pip install bitsandbytes"):
        adamw8bit(nn.Linear(1, 1), **ADAM)


def test_loading_keeps_the_settings_of_the_config():
    """Averages and counts come from the state, the rest from the config, the kernel's device too."""
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    old = adamw(models[0], **ADAM)
    models[0](torch.ones(1, 2)).sum().backward()
    old.step()
    new = adamw(models[1], lr=0.3, betas=(0.1, 0.2), weight_decay=0.5, eps=1e-3)
    new.add_param_group({"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.0, "lr_scale": 7.0})
    state = old.state_dict()
    state["param_groups"].append({**state["param_groups"][0], "params": [2], "fused": False, "lr_scale": 9.0})
    before = [{key: value for key, value in group.items() if key != "params"} for group in new.param_groups]
    with keep_settings([new]):
        new.load_state_dict(state)
        assert new.param_groups[0]["betas"] == (0.5, 0.9)
    after = [{key: value for key, value in group.items() if key != "params"} for group in new.param_groups]
    assert after == before
    own, theirs = new.state[models[1].weight], old.state[models[0].weight]
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


def descend(network, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        for weight in network.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16), (3, 1), (1, 1)])
def test_orthogonalise_is_five_newton_schulz_rounds(shape):
    """Against the rounds as published, in float64, one matrix after another."""
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, result in zip(matrices, orthogonalise(matrices), strict=True):
        expected = matrix.double() / matrix.double().norm()
        for _ in range(5):
            gram = expected @ expected.T
            expected = 3.4445 * expected + (-4.775 * gram + 2.0315 * gram @ gram) @ expected
        torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=2e-4)


def test_orthogonalise_raises_small_singular_values_and_keeps_the_vectors():
    left, right = (torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0] for _ in range(2))
    values = torch.logspace(0, -2, 16, dtype=torch.float64)
    result = orthogonalise((left @ values.diag() @ right.T).float()[None])[0].double()
    found = left.T @ result @ right
    assert (found - found.diagonal().diag()).abs().max() < 1e-3
    assert found.diagonal().min() > 0.6
    assert found.diagonal().max() < 1.3


def test_a_gradient_of_zeros_changes_nothing():
    network = nn.Linear(4, 4)
    before = network.weight.clone()
    network.weight.grad = torch.zeros_like(network.weight)
    Muon(network, **MUON).step()
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_matrices_move_as_under_torchs_muon(decay):
    """torch's rounds are in bfloat16, hence the tolerance: the update is 0.02 per entry and step."""
    ours, theirs = nn.Linear(24, 8, bias=False), nn.Linear(24, 8, bias=False)
    theirs.load_state_dict(ours.state_dict())
    settings = {**MUON, "lr": 0.1, "weight_decay": decay}
    descend(ours, Muon(ours, **settings))
    peer = torch.optim.Muon(
        theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
    )
    descend(theirs, peer)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=2e-3)


def test_the_size_of_an_update():
    """Its root mean square is ``update_rms`` of the rate if its singular values are 1."""
    network = nn.Conv2d(16, 32, 3, bias=False)
    before = network.weight.clone()
    descend(network, Muon(network, **{**MUON, "lr": 0.01, "update_rms": 0.6}), steps=1)
    moved = (before - network.weight).square().mean().sqrt().item()
    assert moved == pytest.approx(0.006, rel=0.2)


def test_a_convolution_is_a_matrix_with_a_row_per_channel():
    convolution, linear = nn.Conv2d(4, 6, 3, bias=False), nn.Linear(36, 6, bias=False)
    linear.weight.data = convolution.weight.data.flatten(1).clone()
    descend(convolution, Muon(convolution, **MUON))
    descend(linear, Muon(linear, **MUON))
    torch.testing.assert_close(convolution.weight.flatten(1), linear.weight)


def test_all_but_matrices_move_as_under_adamw():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.codes = nn.GroupNorm(2, 8), nn.Embedding(16, 4)
            self.scale = nn.Parameter(torch.tensor(2.0))

    ours, theirs = Network(), Network()
    theirs.load_state_dict(ours.state_dict())
    settings = {**ADAM, "weight_decay": 0.1}
    descend(ours, Muon(ours, **{**MUON, **settings}))
    descend(theirs, torch.optim.AdamW(theirs.parameters(), **settings))
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs.state_dict()[name])


def test_which_weights_are_matrices():
    convolutions = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2)
    normed = spectral_norm(nn.Linear(4, 4, bias=False))
    network = nn.Sequential(*convolutions, nn.GroupNorm(2, 4), nn.Embedding(8, 4), nn.Linear(4, 4), normed)
    network[0].weight.requires_grad_(False)
    names = {id(weight): name for name, weight in network.named_parameters()}
    optimizer = Muon(network, **MUON)
    matrices, rest = ([names[id(weight)] for weight in group["params"]] for group in optimizer.param_groups)
    assert matrices == ["1.weight", "4.weight", "5.parametrizations.weight.original"]
    assert rest == ["0.bias", "1.bias", "2.weight", "2.bias", "3.weight", "4.bias"]


def test_weights_of_one_shape_move_as_if_alone():
    """They are stacked: a neighbour must not change the result."""
    pair = nn.ModuleList([nn.Conv2d(4, 4, 3, bias=False) for _ in range(2)])
    alone = nn.Conv2d(4, 4, 3, bias=False)
    alone.load_state_dict(pair[0].state_dict())
    descend(pair, Muon(pair, **MUON), steps=1)
    descend(alone, Muon(alone, **MUON), steps=1)
    torch.testing.assert_close(pair[0].weight, alone.weight)


def test_muon_continues_from_its_state():
    through, stopped = (nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)) for _ in range(2))
    stopped.load_state_dict(through.state_dict())
    descend(through, first := Muon(through, **MUON))
    descend(stopped, second := Muon(stopped, **MUON))
    resumed = Muon(stopped, **MUON)
    with keep_settings([resumed]):
        resumed.load_state_dict(second.state_dict())
    assert [group["orthogonal"] for group in resumed.param_groups] == [True, False]
    descend(through, first)
    descend(stopped, resumed)
    for name, weight in through.state_dict().items():
        assert torch.equal(weight, stopped.state_dict()[name]), name


def test_small_gradients_stay_finite_and_a_weight_rests_after_its_last_gradient():
    """As for a discriminator that has won under the hinge loss: its gradients are zero from then on."""
    network = nn.Conv2d(8, 8, 3)
    optimizer = Muon(network, **MUON)
    descend(network, optimizer)
    assert orthogonalise(torch.full((1, 4, 4), 1e-30)).isfinite().all()
    for step in range(1200):
        if step == 600:
            before = network.weight.clone()
        network.zero_grad(set_to_none=False)
        optimizer.step()
    torch.testing.assert_close(network.weight, before, rtol=0, atol=1e-6)


def test_large_weights_are_not_all_stacked_at_once(monkeypatch):
    layers = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(5)])
    alike = copy.deepcopy(layers)
    descend(layers, Muon(layers, **MUON))
    monkeypatch.setattr(optimizers, "_MOST_STACKED", 40)
    seen = []
    monkeypatch.setattr(
        optimizers, "orthogonalise", lambda matrices: seen.append(len(matrices)) or orthogonalise(matrices)
    )
    descend(alike, Muon(alike, **MUON), steps=3)
    assert seen == [2, 2, 1] * 3
    for one, other in zip(layers.parameters(), alike.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_parameters_that_are_added_later_move_as_under_adamw():
    """Learned scales of the losses are set apart in a group of their own."""
    network, ours, theirs = nn.Linear(2, 2), *(nn.Parameter(torch.tensor(2.0)) for _ in range(2))
    optimizer = Muon(network, **MUON)
    optimizer.add_param_group({"params": [ours], "lr_scale": 3.0})
    peer = torch.optim.AdamW([theirs], **ADAM)
    for _ in range(3):
        ours.grad = theirs.grad = torch.tensor(0.7)
        optimizer.step()
        peer.step()
    torch.testing.assert_close(ours, theirs)


def test_muon_learns_a_faint_direction_sooner_than_adamw():
    """Inputs of which one direction, not along an axis, is faint: the reason to orthogonalise."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    inputs = (
        torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.05]) @ turn.T
    )
    faint = turn[:, 1]

    def error(make):
        network = nn.Linear(2, 2, bias=False)
        nn.init.zeros_(network.weight)
        optimizer = make(network)
        for _ in range(30):
            optimizer.zero_grad()
            (network(inputs) - inputs).square().mean().backward()
            optimizer.step()
        return abs(faint @ network.weight @ faint - 1).item()

    settings = {**ADAM, "lr": 0.3, "betas": (0.9, 0.99)}
    with_muon = error(lambda network: Muon(network, **{**MUON, **settings}))
    with_adamw = error(lambda network: torch.optim.AdamW(network.parameters(), **settings))
    assert with_muon < 0.5 * with_adamw
