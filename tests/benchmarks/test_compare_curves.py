import json


def test_differences_are_between_the_same_steps(script):
    first, second = {1: 1.0, 2: 3.0, 3: 4.0}, {1: 1.5, 2: 3.0, 3: 3.0, 4: 9.0}
    assert script("compare_curves").differences(first, second) == (0.5, 1.0, 1.5)


def test_a_run_s_lines_become_curves_that_are_drawn(tmp_path, monkeypatch, capsys, script):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1 / step, "note": "x"} for step in (1, 2, 4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    curves = script("compare_curves").read_curves(path)
    assert curves == {"loss": {1: 1.0, 2: 0.5, 4: 0.25}}
    monkeypatch.setattr(
        "sys.argv", ["compare_curves", str(path), str(path), "--out", str(tmp_path / "a.png")]
    )
    script("compare_curves").main()
    assert "| loss | 0 | 0 |" in capsys.readouterr().out
    assert (tmp_path / "a.png").is_file()
