import pytest

from latentae.training.broken import BrokenImages, TooManyBrokenImagesError


def test_each_is_reported_once():
    broken = BrokenImages(limit=10, gather=list)
    assert broken.report() is None
    broken.add(["b.png: truncated", "", "a.png: empty"])
    assert broken.report() == "2 images cannot be read and are skipped:\n  a.png: empty\n  b.png: truncated"
    broken.add(["a.png: empty"])
    assert broken.report() is None


def test_those_of_other_ranks_count():
    broken = BrokenImages(limit=1, gather=lambda own: [*own, "from another rank"])
    broken.add(["mine"])
    with pytest.raises(TooManyBrokenImagesError, match=r"2 images .* data\.max_broken is 1"):
        broken.report()


def test_a_long_list_is_cut():
    broken = BrokenImages(limit=100, gather=list)
    broken.add([f"{number:02d}.png: empty" for number in range(12)])
    assert broken.report().endswith("04.png: empty\n  and 7 more")
