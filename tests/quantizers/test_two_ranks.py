"""Every quantizer on two ranks against one with the whole batch, in real processes over gloo."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from latentae import distributed
from tests.processes import run_ranks
from tests.quantizers.conftest import CASES, draw, generator, make

STEPS, MICRO_BATCHES, BATCH = 4, 2, 4


def train(kind: str) -> dict[str, torch.Tensor]:
    """A few steps on this rank's share of the latents; returns all state, and what the last step showed.

    Plain gradient descent, with gradients averaged over ranks as DDP does. One step is refused.
    """
    share = BATCH // distributed.world_size()
    own = slice(distributed.rank() * share, (distributed.rank() + 1) * share)
    quantizer = make(kind).double().train()
    parameters = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    shares = [draw(BATCH, 4, 4, 4, seed=seed, dtype=torch.float64)[own] for seed in (100, 101)]
    change = quantizer.start(shares, generator())
    for step in range(STEPS):
        refused = step == 2
        for micro_batch in range(MICRO_BATCHES):
            seed = step * MICRO_BATCHES + micro_batch
            latents = draw(BATCH, 4, 4, 4, seed=seed, dtype=torch.float64)[own]
            if refused and distributed.rank() == 0:
                latents = torch.full_like(latents, float("nan"))
            latents.requires_grad_()
            output = quantizer(latents)
            (output.loss + output.quantized.square().mean()).backward()
        for parameter in parameters:
            gradient = distributed.all_reduce_mean(parameter.grad)
            parameter.grad = None
            if not refused:
                parameter.data -= 0.1 * gradient
        quantizer.commit(step + 1, generator(step), torch.tensor(not refused))
    seen = {f"loss.{name}": distributed.all_reduce_mean(loss) for name, loss in output.losses.items()}
    seen["latents' gradient"] = distributed.all_gather_concat(latents.grad / distributed.world_size())
    if change is not None:
        seen |= {"start.matrix": change.matrix, "start.shift": change.shift}
    state = {**quantizer.state_dict(), **{f"upkeep.{k}": v for k, v in quantizer.upkeep.items()}}
    return {**seen, **{name: value.clone() for name, value in state.items()}}


def work(rank: int, folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    torch.save({kind: train(kind) for kind in CASES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(work, 2, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_ranks_equal_one(ranks, kind):
    alone = train(kind)
    first, second = (rank[kind] for rank in ranks)
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert value.isfinite().all(), name
        torch.testing.assert_close(first[name], value, msg=lambda text, name=name: f"{name}: {text}")
