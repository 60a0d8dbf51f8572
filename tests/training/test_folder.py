import json

import pytest

from latentae.config import ConfigError
from latentae.training.folder import RunFolder, step_of, swap_in, write_json, write_text


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    return folder


def test_names_that_scripts_rely_on(tmp_path):
    folder = RunFolder(tmp_path)
    names = [
        folder.config,
        folder.metrics,
        folder.summary,
        folder.sample(200),
        folder.checkpoint(200),
        folder.model,
    ]
    assert [str(path.relative_to(tmp_path)) for path in names] == [
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "samples/step_000200.png",
        "checkpoints/step_000200",
        "model",
    ]


def test_the_newest_checkpoint_by_number(folder):
    for step in (900, 1000000, 20):
        folder.checkpoint(step).mkdir()
    (folder.checkpoints / ".step_000999.tmp").mkdir()  # one that was being written when the run was killed
    assert [step_of(path) for path in folder.all_checkpoints()] == [20, 900, 1000000]
    assert folder.checkpoint_to_resume("auto") == folder.checkpoint(1000000)
    assert folder.checkpoint_to_resume("never") is None
    assert folder.checkpoint_to_resume(str(folder.checkpoint(1000000))) == folder.checkpoint(1000000)
    with pytest.raises(ConfigError, match=r"holds later ones \(step_000900, step_1000000\)"):
        folder.checkpoint_to_resume(str(folder.checkpoint(20)))
    with pytest.raises(
        ConfigError, match=r"no checkpoint folder; in .* step_000020, step_000900, step_1000000"
    ):
        folder.checkpoint_to_resume(str(folder.checkpoint(21)))


def test_nothing_to_resume(tmp_path):
    assert RunFolder(tmp_path / "new").checkpoint_to_resume("auto") is None


def test_lines_after_the_checkpoint_are_dropped(folder):
    folder.metrics.write_text(
        "".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)) + '{"step": 8, "lo'
    )
    folder.metrics.write_text("no json\n" + folder.metrics.read_text())
    folder.forget_after(4)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [2, 4]


def test_swapping_keeps_one_whole_folder(tmp_path):
    place, aside = tmp_path / "model", tmp_path / ".model.tmp"
    for content in ("old", "new"):
        aside.mkdir()
        (aside / "weights").write_text(content)
        swap_in(aside, place)
        assert (place / "weights").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_are_replaced_whole(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_json(tmp_path / "a.txt", {"two": 2})
    assert json.loads((tmp_path / "a.txt").read_text()) == {"two": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_without_a_step(tmp_path):
    with pytest.raises(ValueError, match="not named step_"):
        step_of(tmp_path / "best")
