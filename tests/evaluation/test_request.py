from pathlib import Path

import pytest

from latentae.evaluation.request import RESULTS, WORK, Request, check_folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": []}, "there is no model"),
        ({"models": ["a/kl", "b/kl"]}, "a/kl and b/kl are both called kl: write another name"),
        ({"protocol": "imagenet"}, "protocol is 'imagenet'"),
        ({"precision": "fp8"}, "precision is 'fp8', but must be one of float32, bfloat16"),
        ({"limit": 0}, "limit is 0"),
        ({"inception": Path("gone.pth")}, r"inception is gone\.pth, but there is no such file"),
    ],
)
def test_what_cannot_be(changes, says, tmp_path):
    plain = {"models": ["a"], "data": "photos", "out": tmp_path / "new"}
    Request(**plain).check()
    with pytest.raises(ValueError, match=says):
        Request(**{**plain, **changes}).check()
    assert list(tmp_path.iterdir()) == []


def test_only_a_reports_folder_is_written_to(tmp_path):
    check_folder(tmp_path, overwrite=False)
    (tmp_path / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds other files than a report"):
            check_folder(tmp_path, overwrite)
    (tmp_path / WORK).mkdir()  # one that is not finished
    check_folder(tmp_path, overwrite=False)
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(ValueError, match="holds a report already: choose another --out"):
        check_folder(tmp_path, overwrite=False)
    check_folder(tmp_path, overwrite=True)


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(ValueError, match="file is a file"):
            check_folder(out, overwrite=False)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="there is no permission to write in"):
        check_folder(tmp_path / "new" / "report", overwrite=False)
