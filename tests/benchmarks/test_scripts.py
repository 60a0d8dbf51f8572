"""Every command that a page names still starts."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT, ROOT / "docs", ROOT / "benchmarks/results"]
PAGES = [page for folder in FOLDERS for page in folder.glob("*.md")]
COMMAND = re.compile(r"benchmarks/(\w+\.py)((?: +(?:[\w./=-]+|\"[^\"]*\"|[A-Z_]+))*)")
FILES = sorted((ROOT / "benchmarks").glob("*.py"))
SCRIPTS = [path.name for path in FILES if 'if __name__ == "__main__":' in path.read_text()]


def test_named_scripts_and_flags_exist():
    for page in PAGES:
        for name, words in COMMAND.findall(page.read_text().replace("\n", " ")):
            script = ROOT / "benchmarks" / name
            assert script.is_file(), f"{page.name} names {name}"
            code = script.read_text()
            for flag in re.findall(r"(?<= )--[a-z-]+", words):
                option = flag if flag not in ("--rounds", "--threads") else flag.strip("-") + "="
                assert option in code, f"{page.name} names {name} {flag}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_explain_themselves(script, name, monkeypatch, capsys):
    module = script(name.removesuffix(".py"))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert module.__doc__.splitlines()[0] in help_text
