import json
import shutil
import subprocess
import sys

import pytest

from latentae.config import ConfigError, dump_config
from latentae.files import remove, write_json, write_text
from latentae.models.adapting import describe_architecture
from latentae.training.run_folder import RunFolder, describe_pretrained, step_of
from tests.training.pretrained_models import fine_tuning, make_pretrained, write_pretrained


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


def test_what_a_killed_run_left(folder):
    left = [folder.root / ".model.x7w2", folder.checkpoints / ".step_000004.tmp", folder.samples / "kept"]
    for path in (*left, folder.checkpoint(2), folder.root / ".model.old"):
        path.mkdir(parents=True)
        (path / "file").write_text(path.name)
    (folder.root / ".config.yaml.tmp").write_text("half")
    folder.clear_leftovers()
    assert (folder.model / "file").read_text() == ".model.old"  # the new one had not taken its place yet
    assert [path.exists() for path in left] == [False, False, True]
    assert not (folder.root / ".config.yaml.tmp").exists()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step_000002"]


def test_a_run_killed_in_its_first_moment_is_no_stranger(tmp_path, tiny):
    folder, config = RunFolder(tmp_path / "new"), tiny()
    folder.root.mkdir()
    (folder.root / ".config.yaml.tmp").write_text("half")
    folder.check(config)
    folder.create(config)
    folder.checkpoints.rmdir()
    folder.check(config)
    (folder.root / "thesis.tex").write_text("")
    folder.config.unlink()
    with pytest.raises(ConfigError, match="holds files but no run"):
        folder.check(config)


def test_damaged_checkpoints_stand_in_nobodys_way(folder):
    for step in (2, 4, 6):
        folder.checkpoint(step).mkdir()
    (folder.checkpoints / "step_000006.damaged").mkdir()  # of an earlier accident
    assert folder.set_aside(folder.checkpoint(6)).name == "step_000006.damaged"
    folder.set_aside(folder.checkpoint(4))
    assert folder.all_checkpoints() == [folder.checkpoint(2)]
    folder.remove_damaged(5)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "step_000002",
        "step_000006.damaged",
    ]


def test_a_folder_is_never_half_removed_under_its_name(folder, monkeypatch):
    (folder.checkpoint(2) / "file").mkdir(parents=True)

    def killed(path, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path, **options: None if not path.exists() else killed(path))
        with pytest.raises(KeyboardInterrupt):
            remove(folder.checkpoint(2))
    assert folder.all_checkpoints() == []
    folder.clear_leftovers()
    assert list(folder.checkpoints.iterdir()) == []


def test_files_are_replaced_whole(tmp_path):
    write_text(tmp_path / "a.txt", "one")
    write_json(tmp_path / "a.txt", {"two": 2})
    assert json.loads((tmp_path / "a.txt").read_text()) == {"two": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_without_a_step(tmp_path):
    with pytest.raises(ValueError, match="not named step_"):
        step_of(tmp_path / "best")


@pytest.fixture
def place(tmp_path):
    return write_pretrained(make_pretrained(), tmp_path, "our folder")


def test_the_model_itself_is_asked(place, tmp_path):
    asked = describe_pretrained({"output_dir": str(tmp_path / "run"), "model": {"pretrained": place}})
    assert asked == describe_architecture(make_pretrained())


def test_what_a_single_file_does_not_show_is_taken_from_the_config(tmp_path):
    place = write_pretrained(make_pretrained(), tmp_path, "LDM file")
    model = {"pretrained": place, "norm_num_groups": 2}
    assert describe_pretrained({"model": model})["norm_num_groups"] == 2
    with pytest.raises(ValueError, match="norm_num_groups"):
        describe_pretrained({"model": {**model, "norm_num_groups": "many"}})


def test_a_run_that_has_learned_something_is_asked_in_its_place(tiny, tmp_path, place):
    config = fine_tuning(tiny, place, "model.latent_channels=6")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(config))
    data = {"output_dir": str(run), "model": {"pretrained": place}}
    assert describe_pretrained(data)["latent_channels"] == 4  # nothing was learned yet

    (run / "checkpoints/step_000003").mkdir(parents=True)
    shutil.rmtree(place)
    assert describe_pretrained(data) == config.model.model_dump(mode="json", by_alias=True)
    with pytest.raises(ValueError, match="there is no file or folder elsewhere"):
        describe_pretrained({"output_dir": str(run), "model": {"pretrained": "elsewhere"}})


def test_torch_is_not_loaded_to_be_ready():
    code = "import sys, latentae.training.run_folder; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
