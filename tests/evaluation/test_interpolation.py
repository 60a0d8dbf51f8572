import pytest
import torch

from latentae.evaluation.interpolation import LatentTable, join_latents
from latentae.models.interpolation import slerp


def test_neighbours_are_nearest_by_cosine_after_normalisation():
    torch.manual_seed(0)
    latents = torch.randn(9, 3, 4, 4, dtype=torch.float64).float()
    latents[5] = latents[2] * 1.5 + 0.01
    table = LatentTable(latents * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1) + 7)
    assert table.neighbours(range(9))[[2, 5]].tolist() == [5, 2]
    assert table.neighbours(range(4, 7)).tolist() == table.neighbours(range(9))[4:7].tolist()
    flat = (latents - latents.mean(dim=(0, 2, 3), keepdim=True)) / latents.std(
        dim=(0, 2, 3), keepdim=True, correction=0
    )
    cosines = torch.nn.functional.cosine_similarity(flat.flatten(1)[:, None], flat.flatten(1), dim=2)
    assert table.neighbours(range(9)).tolist() == cosines.fill_diagonal_(-2).argmax(dim=1).tolist()


def test_interpolations_are_in_the_latents_own_units():
    torch.manual_seed(0)
    latents = torch.randn(2, 2, 3, 3) * 5 + 100  # each is the other's neighbour
    table = LatentTable(latents.clone())
    between = table.interpolated(range(2))
    torch.testing.assert_close(between[0], between[1])
    halfway = slerp(*((latents - table.mean) / table.std), torch.tensor([0.5])).float()
    torch.testing.assert_close(between[:1], halfway * table.std + table.mean)
    assert between.mean().item() == pytest.approx(100, abs=5)


def test_between_opposite_latents_lies_their_mean():
    latents = torch.tensor([3.0, 7.0]).view(2, 1, 1, 1)
    assert LatentTable(latents).interpolated(range(2)).flatten().tolist() == [5, 5]


def test_latents_are_joined_in_order_and_kept_once():
    latents = torch.arange(1.0, 49.0).view(6, 2, 2, 2).sqrt()
    shards = [
        {"latents": part.clone(), "value.psnr": torch.zeros(len(part))} for part in latents.split([4, 2])
    ]
    table = join_latents([shards[0], {}, shards[1]], 6)
    torch.testing.assert_close(table.normalised * table.std + table.mean, latents)
    tensors = [value for value in vars(table).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in tensors) == latents.numel() + 6 + 2 + 2


def test_nothing_to_interpolate():
    def shard(*shape):
        return {"latents": torch.zeros(shape), "value.psnr": torch.zeros(shape[0])}

    assert join_latents([shard(3, 2, 4, 4), {}], 3) is not None  # no image of the second block could be read
    assert join_latents([shard(3, 2, 4, 4), shard(3, 2, 4, 5)], 6) is None
    assert join_latents([shard(3, 2, 4, 4), {"value.psnr": torch.zeros(2)}], 5) is None
    assert join_latents([shard(1, 2, 4, 4)], 1) is None
    assert join_latents([], 0) is None
