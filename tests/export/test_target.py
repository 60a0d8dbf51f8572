import pytest

from latentae.export.target import check_target, list_files, mend_swap, swap_in, written_aside
from tests.export.conftest import all_files


def write_half(path, error):
    path.parent.mkdir(exist_ok=True)
    path.write_text("half")
    raise error


def test_file_appears_whole(tmp_path):
    target = tmp_path / "new/folder/model.safetensors"
    with written_aside(target) as aside:
        aside.write_text("weights")
        assert aside.name == target.name
        assert not target.exists()
    assert target.read_text() == "weights"
    assert all_files(tmp_path) == ["new", "new/folder", "new/folder/model.safetensors"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), written_aside(tmp_path / "new/folder/model.safetensors") as aside:
        write_half(aside, error)
    assert all_files(tmp_path) == []


def test_failure_leaves_what_stood_there(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(ValueError, match="full"), written_aside(target) as aside:
        write_half(aside / "config.json", ValueError("the disk is full"))
    assert all_files(tmp_path) == ["model", "model/config.json"]


def test_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "diffusion_pytorch_model.fp16.safetensors").write_text("old")
    check_target(target, folder=True, overwrite=True)
    with written_aside(target) as aside:
        aside.mkdir()
        (aside / "config.json").write_text("new")
    assert all_files(tmp_path) == ["model", "model/config.json"]


def test_replaced_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(FileNotFoundError), written_aside(target):
        pass  # nothing was written
    assert (target / "config.json").read_text() == "old"


def test_swapping_keeps_one_whole_folder(tmp_path):
    place, aside = tmp_path / "model", tmp_path / "aside"
    for content in ("old", "new"):
        aside.mkdir()
        (aside / "weights").write_text(content)
        swap_in(aside, place)
        assert (place / "weights").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("new_is_there", [False, True])
def test_a_swap_that_was_killed_is_mended(tmp_path, new_is_there):
    place = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old/weights").write_text("old")
    if new_is_there:
        place.mkdir()
        (place / "weights").write_text("new")
    mend_swap(place)
    assert (place / "weights").read_text() == ("new" if new_is_there else "old")
    assert all_files(tmp_path) == ["model", "model/weights"]


def test_files_are_as_readable_as_others(tmp_path):
    with written_aside(tmp_path / "model") as aside:
        aside.mkdir()
        (aside / "config.json").touch(0o600)
    with written_aside(tmp_path / "file.safetensors") as aside:
        aside.touch(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    modes = {path.name: path.stat().st_mode for path in tmp_path.rglob("*")}
    assert modes["config.json"] == modes["file.safetensors"] == modes["file"]
    assert modes["model"] == modes["folder"]


@pytest.mark.parametrize(
    ("name", "folder", "overwrite", "says"),
    [
        ("new.safetensors", True, False, "names a file, but this format is a folder"),
        ("new", False, False, "end it in .safetensors"),
        ("file.safetensors", False, False, "exists: choose another path, or say overwrite"),
        ("model", True, False, "exists: choose another path"),
        ("file", True, True, "is a file: choose another path"),
        ("folder.safetensors", False, True, "is a folder: choose another path"),
        ("photos", True, True, r"holds more than a model \(holiday.jpg\)"),
    ],
)
def test_refused(tmp_path, name, folder, overwrite, says):
    (tmp_path / "file.safetensors").touch()
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for file in ("model/config.json", "photos/holiday.jpg", "photos/config.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=says):
        check_target(tmp_path / name, folder=folder, overwrite=overwrite)


def test_empty_folder_and_earlier_file_may_be_written_to(tmp_path):
    check_target(tmp_path, folder=True, overwrite=False)
    (tmp_path / "file.safetensors").touch()
    check_target(tmp_path / "file.safetensors", folder=False, overwrite=True)


def test_list_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c").touch()
    (tmp_path / "a").touch()
    assert list_files(tmp_path) == ("a", "b/c")
    assert list_files(tmp_path / "a") == ("a",)
