import json

import pytest

from latentae.data import TarSource
from latentae.data.annotations import read_annotations
from latentae.data.tar_annotations import scan_members
from tests.data.pictures import png_bytes, write_tar
from tests.data.test_tar_index import own_cache  # noqa: F401


def source(root, *samples):
    """A tar file for each list of samples, which give a member's bytes by its extension."""
    paths = []
    for number, group in enumerate(samples):
        members = {}
        for row, others in enumerate(group):
            members |= {f"./{row}.{name}": data for name, data in others.items()}
            members[f"./{row}.png"] = png_bytes(row)
        paths.append(write_tar(root / f"{number}.tar", members))
    return TarSource(paths)


def test_members_called_like_the_image(tmp_path):
    said = read_annotations(
        source(tmp_path, [{"cls": b"3\n", "txt": b"a\nb"}, {"cls": b"0"}], [{"cls": b"1"}])
    )
    assert (said.labels.tolist(), said.label_names) == ([3, 0, 1], None)
    assert [said.captions(index) for index in range(3)] == ["a b", "", ""]


def test_fields_of_a_json(tmp_path):
    rows = [{"json": json.dumps({"label": word, "caption": f"a {word}"}).encode()} for word in ("dog", "cat")]
    said = read_annotations(source(tmp_path, rows))
    assert (said.labels.tolist(), said.label_names) == ([1, 0], ["cat", "dog"])
    assert said.captions(0) == "a dog"


def test_what_is_asked_for(tmp_path):
    data = source(tmp_path, [{"fine.cls": b"8", "cls": b"1", "json": b'{"alt": "hello"}'}])
    said = read_annotations(data, label_column="fine.cls", caption_column="alt")
    assert (said.labels.tolist(), said.captions(0)) == ([8], "hello")
    with pytest.raises(ValueError, match=r"caption_column 'no': no sample has a member \.no, nor that key"):
        read_annotations(data, caption_column="no")


def test_nothing_and_only_captions(tmp_path):
    said = read_annotations(source(tmp_path / "a", [{}, {}]))
    assert (said.labels, said.captions) == (None, None)
    said = read_annotations(source(tmp_path / "b", [{"txt": b"x"}]))
    assert (said.labels, said.captions(0)) == (None, "x")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"0\.tar/1\.png has no label"):
        read_annotations(source(tmp_path / "a", [{"cls": b"1"}, {}]))
    with pytest.raises(ValueError, match=r"the \.json beside 0\.tar/0\.png cannot be read"):
        read_annotations(source(tmp_path / "b", [{"json": b"{"}]))


def test_a_damaged_file_is_read_as_far_as_it_goes(tmp_path):
    path = source(tmp_path, [{"cls": b"1"}, {"cls": b"2"}]).indexes[0].path
    path.write_bytes(path.read_bytes()[: 5 * 512] + b"damaged" * 100)
    data = TarSource([path])
    assert set(scan_members(path)) == {("0", "cls"), ("0", "png"), ("1", "cls")}
    assert read_annotations(data).labels[0] == 1
