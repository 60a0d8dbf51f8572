"""Sums over ranks, by torch.distributed alone; without a process group each is its one-process case.

None of these is differentiable: results carry no gradient. All but `rank`, `world_size`, `is_main` and
`own_part` are collective: every rank calls them, in the same order. Results are new tensors on the argument's
device, equal on all ranks.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = timedelta(hours=24)  # rank 0 may download and index for hours; NCCL's own limit is ten minutes


def rank() -> int:
    """This process's number among all processes of the run, 0 without a process group."""
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """Returns the number of processes of the run; 1 without a process group."""
    return dist.get_world_size() if _is_initialized() else 1


def local_world_size() -> int:
    """Returns the number of processes on this machine, as the launcher reports it; 1 without a launcher."""
    return max(1, min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), world_size()))


def is_main() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


def own_part(count: int) -> range:
    """Returns this rank's part of ``range(count)``. Parts are contiguous: joined, they are in order."""
    return range(count * rank() // world_size(), count * (rank() + 1) // world_size())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks of `tensor`, which has the same shape and type on each."""
    total = _communicable(tensor)
    if world_size() > 1:
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total.to(tensor.device)


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean over ranks of `tensor`, which has the same shape and type on each.

    Raises:
        ValueError: the tensor is of integer type, which has no exact mean.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise ValueError(f"tensor is of type {tensor.dtype}: convert it to floats, or use all_reduce_sum")
    return all_reduce_sum(tensor) / world_size()


def all_gather_concat(tensor: Tensor) -> Tensor:
    """The ranks' tensors one after the other, in rank order.

    Args:
        tensor: [N, ...], of the same type and trailing shape on each rank; N may differ, and be 0.

    Returns:
        [ΣN, ...].

    Raises:
        ValueError: the tensor is a scalar.
    """
    if tensor.ndim == 0:
        raise ValueError("tensor is a scalar: give it a first dimension, with tensor[None]")
    own = _communicable(tensor)
    if world_size() == 1:
        return own
    length = torch.tensor([len(own)], device=own.device)
    lengths = [torch.empty_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    counts = [int(count) for count in torch.cat(lengths).tolist()]
    # Gathering needs equal shapes: pad to the longest, cut afterwards.
    padded = own.new_zeros((max(counts), *own.shape[1:]))
    padded[: len(own)] = own
    gathered = [torch.empty_like(padded) for _ in counts]
    if padded.numel() > 0:
        dist.all_gather(gathered, padded)
    parts = [part[:count] for part, count in zip(gathered, counts, strict=True)]
    return torch.cat(parts).to(tensor.device)


def broadcast_from_main(tensor: Tensor) -> Tensor:
    """Rank 0's `tensor`, on every rank; the others pass one of the same shape and type."""
    result = _communicable(tensor)
    if world_size() > 1:
        dist.broadcast(result, src=0)
    return result.to(tensor.device)


def barrier() -> None:
    """Waits until every rank has come here."""
    if world_size() > 1:
        dist.barrier()


def fails_anywhere(failed: bool) -> bool:
    """Whether any rank has failed; every rank calls it."""
    return bool(all_reduce_sum(torch.tensor(int(failed))).item())


def on_main(action: Callable[[], None], what: str) -> None:
    """Rank 0 does something, and the others wait until it is done; every rank calls it.

    Raises:
        ValueError or OSError: what ``action`` raises on rank 0; elsewhere a ValueError that names ``what``.
    """
    failure: ValueError | OSError | None = None
    if is_main():
        try:
            action()
        except (ValueError, OSError) as error:
            failure = error
    if fails_anywhere(failure is not None):
        raise failure or ValueError(f"the first process could not {what}")


@contextmanager
def main_first() -> Iterator[None]:
    """Runs its body on rank 0, then on the others at once: one rank fetches a file, the rest find it.

    The body must hold no collective call. Where rank 0 fails the others still run theirs, rather than wait
    forever.
    """
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


@contextmanager
def init_from_environment() -> Iterator[torch.device]:
    """A process group for the body, if torchrun or `accelerate launch` started several processes.

    For programs that train nothing; accelerate has a start of its own. A rank waits up to a day for the
    others, such as for one that downloads. Gives this process's device: on CUDA
    one a process (NCCL), or the CPU (gloo) where there is no CUDA or `ACCELERATE_USE_CPU` is set. With one
    process, or a process group that is there already, only the device is chosen. The group it has made is
    taken down at the end, also after an exception, so that no other rank waits for this one.

    Raises:
        ValueError: more processes on this machine than CUDA devices.
    """
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes", "on")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cpu")
    if not use_cpu and torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{local_rank + 1} or more processes, but {torch.cuda.device_count()} CUDA device(s): start "
                "one process a device, or set ACCELERATE_USE_CPU=true"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _is_initialized():
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _communicable(tensor: Tensor) -> Tensor:
    """A contiguous copy without gradient, on a device the backend can send from: NCCL knows only GPUs."""
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1 and dist.get_backend() == "nccl" and copy.device.type == "cpu":
        return copy.to(torch.device("cuda", torch.cuda.current_device()))
    return copy
