import numpy as np
import pytest
import torch

from latentae.training.codebook_picture import _BAR, _LINE, _column_heights, codebook_picture


def test_heights_are_logarithms_of_shares():
    # Ten times the even share is three quarters of the way from a hundredth to a hundred.
    heights = _column_heights(np.array([0.0, 1.0, 10.0, 0.1]), 8)
    assert heights == pytest.approx([0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0, 0])


def test_more_codes_than_columns_and_what_lies_outside():
    assert _column_heights(np.array([1e4, 1e-9]), 2).tolist() == [1, 0]
    assert _column_heights(np.linspace(0, 2, 1000), 10).max() <= 1


def test_a_panel_for_each_table():
    shares = torch.stack([torch.ones(16), torch.tensor([16.0, *[0.0] * 15])])
    picture = codebook_picture(shares)
    assert picture.shape == (2 * 120, 336, 3)
    even, one = np.split(picture, 2)
    bars = [(panel == _BAR).all(axis=2).any(axis=0).sum() for panel in (even, one)]
    assert bars[0] == 320  # every column reaches the line
    assert bars[1] == 20  # a sixteenth of the codes
    assert (even == _LINE).all(axis=2).any(axis=1).sum() == 1


def test_of_one_table_there_is_no_name():
    assert not np.array_equal(codebook_picture(torch.ones(1, 4)), codebook_picture(torch.ones(2, 4))[:120])
