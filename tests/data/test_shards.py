import numpy as np
import pytest

from latentae.data.shards import StreamPlace, epoch_pieces


def images_of(num_shards: int, readers: int, epoch: int, count: int = 10) -> list[tuple[int, int]]:
    """(shard, row) of all readers' images in an epoch, where every shard has `count`."""
    return [
        (piece.shard, row)
        for reader in range(readers)
        for piece in epoch_pieces(num_shards, StreamPlace(0, reader, readers), epoch)
        for row in range(piece.offset, count, piece.step)
    ]


@pytest.mark.parametrize(("num_shards", "readers"), [(1, 1), (7, 1), (7, 3), (8, 8), (3, 8), (1, 5)])
def test_all_readers_together_have_each_image_once(num_shards, readers):
    every = [(shard, row) for shard in range(num_shards) for row in range(10)]
    for epoch in range(3):
        assert sorted(images_of(num_shards, readers, epoch)) == every


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        return [piece.shard for piece in epoch_pieces(50, StreamPlace(seed), epoch)]

    assert order(3, 1) == order(3, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 3) for epoch in range(3)}) == 6


def test_shards_are_shared_only_where_readers_outnumber_them():
    assert {piece.step for piece in epoch_pieces(4, StreamPlace(0, 1, 4), 0)} == {1}
    (piece,) = epoch_pieces(4, StreamPlace(0, 1, 8), 0)
    assert piece.step == 2
    assert piece.offset in (0, 1)


def test_the_one_more_shard_goes_round():
    counts = np.array(
        [
            [len(epoch_pieces(5, StreamPlace(0, reader, 3), epoch)) for reader in range(3)]
            for epoch in range(6)
        ]
    )
    assert counts.sum(axis=1).tolist() == [5] * 6
    assert counts[:3].sum(axis=0).tolist() == [5, 5, 5]
    assert counts[3:].sum(axis=0).tolist() == [5, 5, 5]
