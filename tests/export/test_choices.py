from latentae.console import FAMILIES
from latentae.export.autoencoder import _DTYPES, _FORMATS
from latentae.export.choices import DTYPES, FORMATS
from latentae.export.comparison import TOLERANCES
from latentae.models.checkpoints import families


def test_choices_are_those_there_are():
    assert tuple(_FORMATS) == FORMATS
    assert tuple(families.FAMILIES) == FAMILIES
    assert tuple(_DTYPES) == tuple(TOLERANCES) == DTYPES
