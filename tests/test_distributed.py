import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from latentae import distributed
from tests.processes import run_ranks

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
    run_ranks(observe, WORLD_SIZE, folder)
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


LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU")


@pytest.fixture
def as_from_a_shell(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher has been here, and no GPU is in this machine."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return monkeypatch


@pytest.mark.parametrize("size", [None, "1"])
def test_one_process_needs_no_group(as_from_a_shell: pytest.MonkeyPatch, size: str | None) -> None:
    if size is not None:
        as_from_a_shell.setenv("WORLD_SIZE", size)
    with distributed.init_from_environment() as device:
        assert device == torch.device("cpu")
        assert not dist.is_initialized()


def test_each_process_has_its_own_cuda_device(as_from_a_shell: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    as_from_a_shell.setattr(torch.cuda, "is_available", lambda: True)
    as_from_a_shell.setattr(torch.cuda, "device_count", lambda: 2)
    as_from_a_shell.setattr(torch.cuda, "set_device", chosen.append)
    as_from_a_shell.setenv("LOCAL_RANK", "1")
    with distributed.init_from_environment() as device:
        assert device == torch.device("cuda", 1)
    assert chosen == [device]
    as_from_a_shell.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"3 or more processes, but 2 CUDA device\(s\)"):
        distributed.init_from_environment().__enter__()
    as_from_a_shell.setenv("ACCELERATE_USE_CPU", "true")
    with distributed.init_from_environment() as device:
        assert device == torch.device("cpu")


def launched(rank: int, folder: Path, ports: list[int]) -> None:
    """What a program started by torchrun sees."""
    values = (WORLD_SIZE, rank, rank, "127.0.0.1", ports[0], "true")
    os.environ |= {name: str(value) for name, value in zip(LAUNCHED, values, strict=True)}
    with distributed.init_from_environment() as device:
        seen = {
            "device": str(device),
            "backend": dist.get_backend(),
            "rank": distributed.rank(),
            "sum": distributed.all_reduce_sum(torch.tensor(10**rank)).item(),
        }
        with distributed.init_from_environment():
            pass
        seen["still there"] = distributed.world_size()
    seen["afterwards"] = dist.is_initialized()
    os.environ["MASTER_PORT"] = str(ports[1])
    try:
        with distributed.init_from_environment():
            raise KeyError("the program fails")
    except KeyError:
        seen["after a failure"] = dist.is_initialized()
    torch.save(seen, folder / f"{rank}.pt")


def test_launched_processes_find_each_other(tmp_path: Path) -> None:
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        ports = [probe.getsockname()[1] for probe in (first, second)]
    run_ranks(launched, WORLD_SIZE, tmp_path, ports)
    for rank in range(WORLD_SIZE):
        assert torch.load(tmp_path / f"{rank}.pt") == {
            "device": "cpu",
            "backend": "gloo",
            "rank": rank,
            "sum": 11,
            "still there": 2,
            "afterwards": False,
            "after a failure": False,
        }


def test_one_that_downloads_is_waited_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: given.update(options))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with distributed.init_from_environment():
        assert given["timeout"].total_seconds() == 24 * 3600


def test_failing_together_alone():
    done = []
    distributed.on_main(lambda: done.append(1), "count")
    assert done == [1]
    assert distributed.fails_anywhere(True) is True
    assert distributed.fails_anywhere(False) is False


def test_what_the_first_process_raises_is_raised():
    def fail():
        raise OSError("no such disk")

    with pytest.raises(OSError, match="no such disk"):
        distributed.on_main(fail, "write")


def test_other_ranks_do_nothing_and_hear_of_a_failure(monkeypatch):
    monkeypatch.setattr("latentae.distributed.is_main", lambda: False)
    done = []
    distributed.on_main(lambda: done.append(1), "write")
    monkeypatch.setattr("latentae.distributed.all_reduce_sum", lambda tensor: tensor + 1)
    with pytest.raises(ValueError, match="the first process could not write"):
        distributed.on_main(lambda: done.append(1), "write")
    assert done == []
