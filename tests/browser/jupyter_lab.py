"""A JupyterLab server for the length of a block, with folders of its own: it does not read or change the user's."""

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 90


@dataclass(frozen=True)
class Lab:
    """A running server."""

    address: str
    token: str
    log: Path

    def notebook(self, name: str) -> str:
        """Where a notebook of the served folder opens."""
        return f"{self.address}/lab/tree/{name}?token={self.token}"


@contextmanager
def serve(folder: Path, state: Path) -> Iterator[Lab]:
    """Serve `folder`; settings and workspaces live in `state`. The server and its kernels end with the block."""
    port, token = _free_port(), secrets.token_hex(16)
    state.mkdir(parents=True, exist_ok=True)
    log = state / "server.log"
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR")
    places = {name: str(state / name.lower()) for name in (*names, "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    quiet = Path(places["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab/apputils-extension/notification.jupyterlab-settings")
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # no question in front of what is looked at
    root = Path(__file__).parents[2]
    environment = os.environ | places | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"]
    command += [f"--IdentityProvider.token={token}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.expose_app_in_browser=True"]  # tests run commands of the page, such as a change of theme
    with log.open("w") as sink:
        server = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT, cwd=folder)
    lab = Lab(f"http://127.0.0.1:{port}", token, log)
    try:
        _wait_until_up(server, lab)
        yield lab
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(server: subprocess.Popen[bytes], lab: Lab) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended with {server.returncode}:\n{lab.log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{lab.address}/api/status?token={lab.token}", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not answer within {START_SECONDS} s:\n{lab.log.read_text()[-2000:]}")
