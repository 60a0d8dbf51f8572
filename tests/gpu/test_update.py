"""Updates on a device: a refused one changes nothing to the bit, and one scaler serves two optimizers."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from latentae.devices import to_device
from latentae.training.ema import EMA
from latentae.training.guard import Guard
from latentae.training.optimizers import Muon, adamw
from latentae.training.update import Learner, LearningRate, update

ADAM = {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.01, "eps": 1e-8}
OPTIMIZERS = {"adamw": partial(adamw, **ADAM), "muon": partial(Muon, **ADAM, momentum=0.9, update_rms=0.2)}


def learner(name, device, optimizer="adamw"):
    torch.manual_seed(len(name))
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3)).to(device)
    return Learner(name, module, OPTIMIZERS[optimizer](module), LearningRate(0.1, last_step=100))


def backward(one, device, factor=1.0, scaler=None):
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5)).to(device)
    loss = factor * one.module(images).square().mean()
    (loss if scaler is None else scaler.scale(loss)).backward()


def state(one):
    """Weights, moments and step counts, each a tensor."""
    slots = [slot for state in one.optimizer.state.values() for slot in state.values()]
    return [value.detach().clone() for value in (*one.module.parameters(), *slots)]


def is_equal(first, second):
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_refused_update_changes_no_bit(device, optimizer):
    one, guard = learner("net", device, optimizer), Guard(lambda own: own)
    average = EMA(one.module, 0.9)
    for step, factor, is_made in ((0, 1.0, True), (1, float("nan"), False), (2, float("inf"), False)):
        backward(one, device, factor)
        before = [*state(one), *average.state_dict().values()]
        before = [value.clone() for value in before]
        done = update([one], step, None, 1.0, lambda norms, scale, step=step: guard.accept(step, norms))
        average.update(one.module, done.accepted)
        assert done.accepted.device.type == device.type
        assert bool(done.accepted) == is_made
        if step:
            assert is_equal([*state(one), *average.state_dict().values()], before)
    # The step after is the one that would have followed the first.
    twin = learner("net", device, optimizer)
    for _ in range(2):
        backward(twin, device)
        update([twin], 0, None, 1.0, lambda norms, scale: torch.ones((), dtype=torch.bool, device=device))
    backward(one, device)
    update([one], 3, None, 1.0, lambda norms, scale: guard.accept(3, norms))
    assert is_equal(state(one), state(twin))
    assert guard.report()[0].causes == ["net_gradient_norm"]


@pytest.mark.parametrize("growth_interval", [2, 1000])
def test_one_scaler_for_two_optimizers(device, growth_interval):
    """Scaled updates are those without a scale, also where the scale grows; an overflow halves it once."""
    names = ("autoencoder", "discriminator")
    scaled, plain = ([learner(name, device) for name in names] for _ in range(2))
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0, growth_interval=growth_interval)
    guard = Guard(lambda own: own)
    for step in range(4):
        for one, other in zip(scaled, plain, strict=True):
            backward(one, device, scaler=scaler)
            backward(other, device)
        done = update(scaled, step, scaler, 1.0, lambda norms, s, step=step: guard.accept(step, norms, s))
        assert bool(done.accepted)
        update(plain, step, None, 1.0, lambda norms, scale: torch.ones((), dtype=torch.bool, device=device))
    for one, other in zip(scaled, plain, strict=True):
        torch.testing.assert_close(state(one), state(other), rtol=1e-5, atol=1e-6)
    grown = 256.0 * (4 if growth_interval == 2 else 1)
    assert scaler.get_scale() == grown

    before = copy.deepcopy([state(one) for one in scaled])
    backward(scaled[0], device, scaler=scaler)
    backward(scaled[1], device, factor=1e38, scaler=scaler)  # which the scale takes out of range
    done = update(scaled, 4, scaler, 1.0, lambda norms, s: guard.accept(4, norms, s))
    assert not bool(done.accepted)
    assert scaler.get_scale() == grown / 2
    assert all(is_equal(state(one), old) for one, old in zip(scaled, before, strict=True))
    assert guard.report() == []  # an overflow is no fault


@pytest.mark.gpu
def test_fused_updates_never_wait(cuda):
    one, guard = learner("net", cuda), Guard(lambda own: own)
    average = EMA(one.module, 0.9)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    backward(one, cuda, scaler=scaler)
    update([one], 0, scaler, 1.0, lambda norms, s: guard.accept(0, norms, s))
    backward(one, cuda, scaler=scaler)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        done = update([one], 1, scaler, 1.0, lambda norms, s: guard.accept(1, norms, s))
        average.update(one.module, done.accepted)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(done.accepted)


def test_copies_to_a_device_do_not_wait(device):
    values = torch.arange(1000, dtype=torch.float64)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        copied = to_device(values, device)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert copied.device.type == device.type
    assert torch.equal(copied.cpu(), values)
