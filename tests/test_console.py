import argparse

import pytest

from latentae.console import FAMILIES, add_family_option, add_reading_options, is_first_process


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False)])
def test_which_process_speaks(rank, first, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is first


def test_reading_options():
    parser = argparse.ArgumentParser()
    add_reading_options(parser).add_argument("--more")
    given = ["--image-column", "png", "--value-range", "-1", "2.5", "--more", "x"]
    assert vars(parser.parse_args(given)) == {
        "image_column": "png",
        "dataset_config": None,
        "value_range": [-1.0, 2.5],
        "more": "x",
    }


def test_family_option():
    parser = argparse.ArgumentParser()
    add_family_option(parser)
    assert parser.parse_args([]).family is None
    assert [parser.parse_args(["--family", name]).family for name in FAMILIES] == list(FAMILIES)
    with pytest.raises(SystemExit):
        parser.parse_args(["--family", "sd9"])
    several = argparse.ArgumentParser()
    add_family_option(several, several=True)
    assert several.parse_args([]).families == []
    assert several.parse_args(["--family", "a=sd1", "--family", "flux"]).families == ["a=sd1", "flux"]
