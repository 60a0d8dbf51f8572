import torch
from torch import nn

from latentae.training.memory import (
    ActivationMeter,
    MemoryUse,
    WorkingSpace,
    gradient_bytes,
    module_bytes,
    tensor_bytes,
)

KILOBYTE = torch.zeros(256)


def test_what_a_graph_keeps_by_hand():
    x = KILOBYTE.clone().requires_grad_()
    with ActivationMeter() as meter:
        y = x.exp()  # keeps its result
        z = y.sin()  # keeps its input, the same storage
        loss = (z * z).sum()  # keeps z twice
    assert meter.peak == 2 * 1024
    loss.backward()
    assert torch.allclose(x.grad, torch.sin(torch.tensor(2.0)).expand(256))  # 2 sin(y) cos(y) y at y = 1
    assert meter._present == 0


def test_a_freed_graph_makes_room():
    with ActivationMeter() as meter:
        for _ in range(3):
            x = KILOBYTE.clone().requires_grad_()
            x.exp().exp().sum().backward()
    assert meter.peak == 2 * 1024


def test_what_is_made_and_alive_at_once_by_hand():
    given = KILOBYTE.clone()
    with WorkingSpace() as space:
        first = given + 1
        second = first[10:] * 2  # 246 numbers
        given.mul_(2)
        del first
        third = torch.zeros(100)
    assert space.peak == 1024 + 246 * 4
    del second, third


class Passing(nn.Module):
    def forward(self, x):
        for _ in range(3):
            x = x.detach() + 1  # one at a time is in use, and another one is made
        return x


def test_what_is_held_within_a_forward_counts_beside_what_is_kept():
    module, x = Passing(), KILOBYTE.clone().requires_grad_()
    with ActivationMeter() as meter, meter.during(module):
        y = x.exp()
        module(KILOBYTE)
    assert meter.peak == 3 * 1024
    with ActivationMeter() as meter:
        y = x.exp()
        module(KILOBYTE)
    assert meter.peak == 1024
    y.sum().backward()


def test_weights_are_counted_elsewhere():
    layer = nn.Linear(16, 16, bias=False)
    inputs = torch.zeros(4, 16, requires_grad=True)
    with ActivationMeter(layer.parameters()) as meter:
        layer(inputs)
    assert meter.peak == 4 * 16 * 4  # the inputs, for the weight's gradient
    with ActivationMeter() as meter:
        layer(inputs)
    assert meter.peak == 4 * 16 * 4 + 16 * 16 * 4


def test_views_count_as_what_they_hold_on_to():
    x = torch.zeros(4, 256, requires_grad=True)
    with ActivationMeter() as meter:
        y = x.exp()
        y[0].sin()
    assert meter.peak == 4 * 1024


def test_gradients_are_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 1))
    images = torch.rand(2, 3, 8, 8)
    net(images).sum().backward()
    plain = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    with ActivationMeter(net.parameters()):
        net(images).sum().backward()
    assert all(torch.equal(p.grad, other) for p, other in zip(net.parameters(), plain, strict=True))


def test_bytes_of_modules_and_states():
    net = nn.BatchNorm1d(8)  # two parameters and two averages of 8, and a counter
    net.bias.requires_grad_(False)
    shared = nn.Sequential(net, net)
    assert module_bytes(shared, net) == 4 * 8 * 4 + 8
    assert gradient_bytes(net) == 8 * 4
    half = torch.zeros(3, dtype=torch.float16)
    assert tensor_bytes({"a": [half, (half,)], "b": {"c": torch.zeros(2)}, "d": 1.0}) == 6 + 6 + 8


def test_the_total_is_the_sum():
    use = MemoryUse(weights=1, gradients=2, optimizer=4, average=8, losses=16, activations=32)
    assert use.total == 63
