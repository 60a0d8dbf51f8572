import pytest
from pydantic import ValidationError

from latentae.config.schema.guard import GuardConfig


def test_ten_in_a_row_by_default_and_one_at_least():
    assert GuardConfig().max_consecutive == 10
    with pytest.raises(ValidationError):
        GuardConfig(max_consecutive=0)
