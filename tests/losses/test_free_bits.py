import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from latentae.losses.free_bits import FreeBits

# Two images of two channels: the channels' means over the batch are 1.0 and 6.0 nats.
DIVERGENCE = torch.tensor([[[[0.5, 0.25]], [[2.0, 2.0]]], [[[0.25, 1.0]], [[3.0, 5.0]]]])


@pytest.mark.parametrize(
    ("nats", "per", "paid", "free"),
    [
        (0.5, "channel", 7.0, 0),
        (1.0, "channel", 7.0, 1),
        (2.0, "channel", 2.0 + 6.0, 1),
        (9.0, "channel", 18.0, 2),
        (2.0, "image", 7.0, 0),
        (9.0, "image", 9.0, 1),
    ],
)
def test_by_hand(nats, per, paid, free):
    free_bits = FreeBits(nats, per)
    assert free_bits(DIVERGENCE).item() == paid
    assert free_bits.count_free(DIVERGENCE).item() == free


def test_only_what_is_paid_for_has_a_gradient():
    divergence = DIVERGENCE.clone().requires_grad_()
    FreeBits(2.0)(divergence).backward()
    assert divergence.grad[:, 0].eq(0).all()
    assert divergence.grad[:, 1].eq(0.5).all()  # of two images


def free_bits_of_a_rank(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    divergence = DIVERGENCE[rank : rank + 1].clone().requires_grad_()
    free_bits = FreeBits(5.0)
    loss = free_bits(divergence)
    loss.backward()
    found = (loss.detach(), divergence.grad, free_bits.count_free(divergence.detach()))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    """By themselves the ranks' second channels have 4 nats, which would be free, and 8."""
    whole = DIVERGENCE.clone().requires_grad_()
    loss = FreeBits(5.0)(whole)
    loss.backward()
    mp.spawn(free_bits_of_a_rank, args=(tmp_path,), nprocs=2)
    (first, first_gradient, first_count), (second, second_gradient, second_count) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)
    )
    assert ((first + second) / 2).item() == loss.item() == 5.0 + 6.0
    # what DDP makes of it: the mean over ranks
    assert torch.equal(torch.cat([first_gradient, second_gradient]) / 2, whole.grad)
    assert first_count == second_count == 1
