import argparse

import pytest

from latentae.console import add_reading_options, is_first_process


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False)])
def test_which_process_speaks(rank, first, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is first


def test_reading_options():
    parser = argparse.ArgumentParser()
    add_reading_options(parser).add_argument("--more")
    given = ["--image-column", "png", "--value-range", "-1", "2.5", "--max-pixels", "9", "--more", "x"]
    assert vars(parser.parse_args(given)) == {
        "image_column": "png",
        "dataset_config": None,
        "value_range": [-1.0, 2.5],
        "max_pixels": 9,
        "more": "x",
    }
