import pytest
from pydantic import ValidationError

from latentae.config.schema.guard import GuardConfig


def test_ten_in_a_row_by_default_and_one_at_least():
    assert GuardConfig().max_consecutive == 10
    with pytest.raises(ValidationError):
        GuardConfig(max_consecutive=0)


def test_a_share_of_the_codes_or_nothing():
    assert GuardConfig().min_codebook_usage == 0.5
    assert GuardConfig(min_codebook_usage=None).min_codebook_usage is None
    with pytest.raises(ValidationError):
        GuardConfig(min_codebook_usage=95)
