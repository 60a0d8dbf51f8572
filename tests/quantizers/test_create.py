import pytest

from latentae.quantizers import QUANTIZERS, create_quantizer, implied_size, quantizer_size
from tests.quantizers.conftest import CASES


def test_every_type_is_created_by_its_name():
    assert CASES.keys() == QUANTIZERS.keys()
    for kind, arguments in CASES.items():
        quantizer = create_quantizer(kind, **arguments)
        assert type(quantizer) is QUANTIZERS[kind]
        assert quantizer_size(kind, **arguments) == (quantizer.num_codes, quantizer.code_dim)


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"type": "fsq", "levels": [8, 5, 5]}, (200, 3)),
        ({"type": "bsq", "bits": 9}, (512, 9)),
        ({"type": "residual", "depth": 2, "member": {"type": "lfq", "bits": 3}}, (8, 3)),
        ({"type": "grouped", "groups": 2, "member": {"type": "fsq", "levels": [3, 3]}}, (9, 4)),
        ({"type": "vector"}, None),
        ({"type": "residual", "depth": 2, "member": {"type": "ema"}}, None),
    ],
)
def test_sizes_that_arguments_tell(arguments, size):
    assert implied_size(**arguments) == size


def test_members_share_the_channels():
    quantizer = create_quantizer("grouped", num_codes=8, code_dim=6, groups=3, member={"type": "ema"})
    assert [member.code_dim for member in quantizer.members] == [2, 2, 2]
    assert quantizer.depth == 3


def test_arguments_reach_the_class_and_its_members():
    member = {"type": "simvq", "commitment_weight": 0.5, "init": "normal"}
    quantizer = create_quantizer("residual", num_codes=8, code_dim=2, depth=2, dropout=0.25, member=member)
    assert quantizer.dropout == 0.25
    assert [part.commitment_weight for part in quantizer.members] == [0.5, 0.5]
    assert member == {"type": "simvq", "commitment_weight": 0.5, "init": "normal"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": "none"}, "quantizer type is 'none', but must be one of vector, ema, cosine"),
        ({"type": "vector", "num_codes": 4}, "the vector quantizer needs num_codes and code_dim"),
        ({"type": "fsq"}, r"levels are \[\]"),
        ({"type": "fsq", "levels": [5, 5], "num_codes": 26}, "num_codes is 26, but the fsq .* make it 25"),
        ({"type": "lfq", "bits": 4, "code_dim": 5}, "code_dim is 5, but the lfq .* make it 4"),
        ({"type": "lfq"}, "bits is 0"),
        ({"type": "residual", "member": {"type": "ema"}}, "depth is 0"),
        ({"type": "grouped", "groups": 2}, "member of the grouped quantizer is None"),
        (
            {"type": "grouped", "groups": 2, "member": {"type": "ema"}, "num_codes": 4, "code_dim": 5},
            "code_dim is 5, which 2 groups cannot share",
        ),
    ],
)
def test_what_cannot_be_created(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_quantizer(**arguments)
