"""The command of the demo: what it refuses, and how it sets the environment."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys

import pytest

from latentae import cli
from latentae.demo.serve import Server, _stop_signals, set_environment
from tests.processes import ROOT, environment


def test_a_missing_extra_is_one_sentence_before_any_work(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    assert cli.main(["demo", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert (
        error == "error: latentae demo needs Gradio, which is not installed: pip install 'latentae[demo]'\n"
    )


def test_an_address_that_cannot_be_used(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=f"port {port} cannot be used on 127.0.0.1: choose another --port"
        ):
            Server(port=port).check()
    Server(port=port).check()
    with pytest.raises(ValueError, match="port is 70000, but must be from 1 to 65535"):
        Server(port=70000).check()
    with pytest.raises(ValueError, match=r"--host no\.such\.host\.invalid is not an address of this machine"):
        Server(host="no.such.host.invalid", port=port).check()
    with pytest.raises(ValueError, match=r"--host 192\.0\.2\.1 is not an address of this machine"):
        Server(host="192.0.2.1").check()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: choose a folder for --out"):
        Server(out=tmp_path / "file").check()


def test_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process: start it without a launcher"):
        Server().check()


def test_mistakes_are_told_before_torch_loads():
    code = "import sys; from latentae.cli import main; code = main(['demo', 'm', '--port', '70000'])\n"
    code += "assert not {'torch', 'gradio', 'numpy'} & set(sys.modules); sys.exit(code)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_only_this_machine_reaches_a_loopback_address(host):
    assert Server(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "a.example"])
def test_other_machines_reach_all_others(host):
    assert not Server(host=host).is_local


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_signal_that_is_ignored_stays_ignored():
    """So that a page that nohup started outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_settings_that_could_share_the_page_are_removed(monkeypatch):
    before = {"GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "NO_PROXY": "a.example", "OTHER": "1"}
    before["no_proxy"] = "b.example"  # Python would read this one
    monkeypatch.setattr(os, "environ", dict(before))
    set_environment("folder")
    assert os.environ == {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": "folder",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": "folder",
        "NO_PROXY": "a.example,b.example,localhost,127.0.0.1,::1",
        "OTHER": "1",
    }
