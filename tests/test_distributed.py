import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from latentae import distributed

WORLD_SIZE = 2


def test_without_a_process_group_there_is_one_rank() -> None:
    assert distributed.rank() == 0
    assert distributed.world_size() == 1
    assert distributed.is_main()
    distributed.barrier()
    with distributed.main_first():
        pass


@pytest.mark.parametrize(
    "function",
    [
        distributed.all_reduce_sum,
        distributed.all_reduce_mean,
        distributed.all_gather_concat,
        distributed.broadcast_from_main,
    ],
)
def test_one_rank_gets_its_own_values_in_a_new_tensor(function: Any) -> None:
    tensor = torch.tensor([[1.5, -2.0]], requires_grad=True)
    result = function(tensor)
    assert result.tolist() == [[1.5, -2.0]]
    assert not result.requires_grad
    result.zero_()
    assert tensor.tolist() == [[1.5, -2.0]]


def test_what_has_no_mean_or_no_first_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match=r"type torch.int64: .*all_reduce_sum"):
        distributed.all_reduce_mean(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"scalar: give it a first dimension"):
        distributed.all_gather_concat(torch.tensor(1.0))


def observe(rank: int, folder: Path) -> None:
    """Calls everything as one of two ranks and saves what came back."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD_SIZE)
    own = torch.tensor([1.0, 2.0], dtype=torch.float64) * 10**rank
    transposed = torch.arange(6).reshape(2, 3).T + 100 * rank  # [3, 2], not contiguous
    order = folder / "order"
    seen: dict[str, Any] = {
        "rank": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "sum": distributed.all_reduce_sum(own),
        "counts": distributed.all_reduce_sum(torch.tensor([rank, 2**40])),
        "mean": distributed.all_reduce_mean(own.requires_grad_()),
        "argument": own.detach(),
        "equal": distributed.all_gather_concat(transposed),
        "unequal": distributed.all_gather_concat(torch.full((3 * rank, 2), float(rank))),
        "longer first": distributed.all_gather_concat(torch.full((2 - rank,), rank)),
        "empty": distributed.all_gather_concat(torch.zeros(0, 4)),
        "flags": distributed.all_gather_concat(torch.tensor([rank == 0])),
        "broadcast": distributed.broadcast_from_main(torch.tensor([5 + rank])),
    }
    with distributed.main_first():
        if rank == 0:
            time.sleep(0.2)  # long enough for the other rank to overtake, were it not held
            order.write_text("0")
        seen["order"] = order.read_text()
    try:
        with distributed.main_first():
            if rank == 0:
                raise KeyError("rank 0 fails")
    except KeyError:
        seen["failed"] = True
    if rank == 0:
        time.sleep(0.2)
        (folder / "before").touch()
    distributed.barrier()
    seen["barrier"] = (folder / "before").exists()
    torch.save(seen, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(observe, args=(folder,), nprocs=WORLD_SIZE)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


def test_each_rank_knows_its_number(ranks: list[dict[str, Any]]) -> None:
    assert [seen["rank"] for seen in ranks] == [(0, 2, True), (1, 2, False)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", [11.0, 22.0]),
        ("counts", [1, 2**41]),
        ("mean", [5.5, 11.0]),
        ("equal", [[0, 3], [1, 4], [2, 5], [100, 103], [101, 104], [102, 105]]),
        ("unequal", [[1.0, 1.0]] * 3),
        ("longer first", [0, 0, 1]),
        ("empty", []),
        ("flags", [True, False]),
        ("broadcast", [5]),
    ],
)
def test_every_rank_gets_the_same(ranks: list[dict[str, Any]], name: str, expected: list[Any]) -> None:
    for seen in ranks:
        assert seen[name].tolist() == expected
        assert not seen[name].requires_grad


def test_types_and_trailing_shapes_are_kept(ranks: list[dict[str, Any]]) -> None:
    for seen in ranks:
        types = [seen[name].dtype for name in ("sum", "counts", "flags")]
        assert types == [torch.float64, torch.int64, torch.bool]
        assert seen["empty"].shape == (0, 4)


def test_arguments_stay_as_they_were(ranks: list[dict[str, Any]]) -> None:
    assert [seen["argument"].tolist() for seen in ranks] == [[1.0, 2.0], [10.0, 20.0]]


def test_the_main_rank_goes_first(ranks: list[dict[str, Any]]) -> None:
    assert [seen["order"] for seen in ranks] == ["0", "0"]


def test_a_failing_main_rank_lets_the_others_go(ranks: list[dict[str, Any]]) -> None:
    assert [seen.get("failed", False) for seen in ranks] == [True, False]


def test_the_barrier_waits_for_all(ranks: list[dict[str, Any]]) -> None:
    assert [seen["barrier"] for seen in ranks] == [True, True]
