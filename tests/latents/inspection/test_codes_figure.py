import torch

from latentae.latents.inspection.codes_figure import CodeTable, codes_figure


def table(count, used, size=4, channels=3):
    counts = torch.arange(count).flip(0) - (count - used) + 1
    tiles = torch.zeros(count, channels, size, size)
    return CodeTable(torch.arange(count), tiles, counts.clamp(min=0), used / count, 1.5)


def grey(figure):
    return int((figure.picture == 128).all(axis=-1).sum())


def test_every_tile_is_drawn_once():
    # of 4 pixels, shown 6 times as large, in rows of 32; mid-grey
    assert grey(codes_figure("t", [table(70, 40)], 70)) == 70 * 24 * 24
    assert grey(codes_figure("t", [table(5, 5, channels=1)], 5)) == 5 * 24 * 24


def test_used_and_unused_stand_apart():
    apart, together = (codes_figure("t", [table(64, used)], 64).picture for used in (32, 64))
    assert apart.shape[0] - together.shape[0] == 30 + 16


def test_one_block_a_table_and_all_without_counts():
    uncounted = CodeTable(torch.arange(3), torch.zeros(3, 3, 30, 30), None, None, None)
    assert grey(codes_figure("t", [uncounted, uncounted], 8)) == 2 * 3 * 30 * 30
