import pytest

from latentae.export.autoencoder import check_target


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
