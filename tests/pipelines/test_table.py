import pytest

from tests.pipelines import table
from tests.pipelines.autoencoders import AUTOENCODERS, OURS, has_codes
from tests.pipelines.cases import CASES


@pytest.fixture(scope="module")
def rows():
    return table.rows()


@pytest.mark.parametrize("autoencoder", OURS)
@pytest.mark.parametrize("case", CASES)
def test_ours_work_in_every_pipeline(rows, case, autoencoder):
    cell = rows[case][list(AUTOENCODERS).index(autoencoder)]
    assert cell == ("works" if has_codes(autoencoder) or not CASES[case].of_codes else "-")


def test_the_written_table_is_what_comes_out(rows):
    written = table.PATH.read_text(encoding="utf-8")
    if table.versions() not in written:
        pytest.skip(f"the table was written with other versions than {table.versions()}")
    assert written == table.text(rows)
