import pytest

from latentae.evaluation.settings import Settings


def test_numbers_out_of_range():
    for name in ("batch_size", "num_workers", "cycle_images"):
        with pytest.raises(ValueError, match=f"{name} is -1"):
            Settings(**{name: -1})
