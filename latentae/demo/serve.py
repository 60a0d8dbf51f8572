"""Opens the models, and serves the page until it is stopped."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from latentae.demo.compute import Reading

FIRST_PORT, _PORTS = 7860, 100
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Server:
    """Settings of the page's server.

    Attributes:
        host: the address to listen on.
        port: None: the first one from ``FIRST_PORT`` on that is free.
        out: the folder in which a folder for temporary files is made; None: the system's.
        max_megabytes: of an uploaded file, in millions of bytes.
        open_browser: whether to open the page on this machine, if it has a screen.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    out: Path | None = None
    max_megabytes: int = 50
    open_browser: bool = True

    def check(self) -> None:
        """Raises ValueError if Gradio is not installed, or the page cannot be served at this address."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("latentae demo runs in one process: start it without a launcher")
        if importlib.util.find_spec("gradio") is None:
            raise ValueError(
                "latentae demo needs Gradio, which is not installed: pip install 'latentae[demo]'"
            )
        _check_address(self.host, self.port)
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file: choose a folder for --out")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def serve(
    models: Sequence[str],
    server: Server,
    reading: Reading,
    *,
    families: Sequence[str] = (),
    precision: str = "float32",
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Opens models and serves the page until the process gets SIGINT, SIGTERM or SIGHUP.

    Uploads and pictures lie in a temporary folder, which is removed at the end.

    Args:
        models, families, precision: as ``open_models`` takes them.
        server: where to serve.
        reading: how uploaded images are read.
        device: of the models.
        say: gets the address of the page, and a warning if other machines can reach it.

    Raises:
        ValueError: no Gradio, an address that cannot be used, or a model that cannot be opened.
    """
    server.check()

    from latentae.demo.compute import Demo
    from latentae.evaluation.models import open_models

    demo = Demo(
        open_models(models, precision, device, families=families, alpha=reading.alpha), reading, device
    )
    if not server.is_local:
        say(
            f"warning: other machines may reach the page on --host {server.host}: anybody can then upload "
            "images and run the models, without a password"
        )
    if server.out is not None:
        server.out.mkdir(parents=True, exist_ok=True)
    with (
        _stop_signals() as stop,
        tempfile.TemporaryDirectory(prefix="latentae-demo-", dir=server.out) as folder,
    ):
        set_environment(str(Path(folder).absolute()))
        page = _launch(demo, server)
        try:
            say(f"the page: {page.local_url} (Ctrl-C ends it)")
            stop.wait()
        finally:
            page.close(verbose=False)
    say("the page is closed; its temporary files are removed")


def set_environment(folder: str) -> None:
    """Sets what Gradio reads from the environment: no telemetry, and temporary files in ``folder`` alone.

    Other settings of Gradio are removed, since they could share the page or serve other folders. Requests of
    this process to itself bypass a proxy.
    """
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    # Of both spellings Python would read the lower case alone.
    given = [os.environ.get("NO_PROXY"), os.environ.pop("no_proxy", None)]
    bypassed = [*filter(None, given), *_LOOPBACK_NAMES]
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": folder,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Gradio loads matplotlib, which would list the fonts of the machine in the user's folder.
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": folder,
        "NO_PROXY": ",".join(bypassed),
    }


def _launch(demo: Any, server: Server) -> Any:
    """Starts the page in threads of its own, and returns it."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from latentae.demo.page import CSS, build_page, theme

    # Other sites whose names resolve to this machine (DNS rebinding) are refused by the name they ask for.
    hosts = [*_LOOPBACK_NAMES, server.host] if server.is_local else ["*"]
    page = build_page(demo)
    try:
        page.launch(
            server_name=server.host,
            server_port=server.port,
            inbrowser=server.open_browser and _has_screen(),
            max_file_size=server.max_megabytes * _MEGABYTE,
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]},
            theme=theme(),
            css=CSS,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            num_workers=0,
            state_session_capacity=64,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ValueError(_no_port(server.host, server.port)) from error
    return page


def _check_address(host: str, port: int | None) -> None:
    """Raises ValueError if this machine cannot listen there; without a port it tries one that is free."""
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"port is {port}, but must be from 1 to {2**16 - 1}")
    try:
        found = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        if port is not None and not isinstance(error, socket.gaierror):
            raise ValueError(f"{_no_port(host, port)} ({error.strerror})") from error
        raise ValueError(f"--host {host} is not an address of this machine: {error.strerror}") from error


def _no_port(host: str, port: int | None) -> str:
    if port is None:
        tried = f"{FIRST_PORT} to {FIRST_PORT + _PORTS - 1}"
        return f"no port from {tried} is free on {host}: choose one with --port"
    return f"port {port} cannot be used on {host}: choose another --port or --host"


def _has_screen() -> bool:
    """Whether a browser would open a window. Without a screen it could take over the terminal."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yields an event that SIGINT, SIGTERM and SIGHUP set, so that the folder is removed in any case.

    A signal that this process was told to ignore, such as SIGHUP by ``nohup``, stays ignored.
    """
    stop = threading.Event()
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
