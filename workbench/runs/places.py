"""Where a stored run lies: a local folder or an fsspec URL, as a Zarr store, and the raw bytes of its metadata."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from zarr.abc.store import Store as Backend
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from workbench.checking import Place, plainly
from workbench.errors import RunError


def local_path(path: str | Path) -> Path | None:
    """The local path that a path or `file:` URL names; None for an address with another protocol.

    `~` is the home folder; in `file:` URLs `%20` and the like are decoded, in paths they are what they are.

    Raises:
        RunError: An empty path, a file in its place, or a `file:` URL of another machine.
    """
    try:
        text = str(Place().check(path))
    except ValueError as error:
        raise RunError(f"The place of a run {error}; got {plainly(path)}. Give a folder, such as 'run.zarr'.") from None
    if text.startswith("file:"):
        host, text = "", unquote(text.removeprefix("file:"))
        if text.startswith("//"):
            host, _, rest = text[2:].partition("/")
            text = f"~/{rest}" if host == "~" else f"/{rest}"
        if host not in ("", "localhost", "~"):
            raise RunError(
                f"{str(path)!r} names the machine {host!r}; a file: URL is of this one and has three slashes, like "
                f"'file:///{host}/…'. Give that, or a plain path."
            )
    elif "://" in text:
        return None
    local = Path(text).expanduser()
    if local.is_file():
        raise RunError(f"{local} is a file; a run is stored as a folder. Choose another path.")
    return local


def backend_of(path: str | Path, *, read_only: bool) -> tuple[Backend, Path | None]:
    """The Zarr store behind a path or URL, and the local path if it is one.

    Raises:
        RunError: As `local_path`; also a protocol that fsspec does not know, or whose package is missing.
    """
    local = local_path(path)
    if local is not None:
        return LocalStore(local, read_only=read_only), local
    protocol = str(path).partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise RunError(
            f"{str(path)!r} cannot be reached: {error}. Use a local path, or a protocol of fsspec whose package is "
            "installed, such as s3:// (pip install s3fs)."
        ) from error
    return FsspecStore.from_url(str(path), read_only=read_only), None


def read_json(backend: Backend, key: str) -> Any:
    """A JSON document of a store, parsed by nothing but a JSON parser; None where there is none."""
    buffer = sync(backend.get(key, prototype=default_buffer_prototype()))
    return None if buffer is None else json.loads(buffer.to_bytes())


def write_json(backend: Backend, key: str, document: Any) -> None:
    """Write a JSON document; on a local disk it appears whole or not at all."""
    sync(backend.set(key, cpu.Buffer.from_bytes(json.dumps(document).encode())))


def delete(backend: Backend, key: str) -> None:
    """Delete one file of a store, if it is there."""
    sync(backend.delete(key))


def holds(backend: Backend, *keys: str) -> str:
    """The first of some keys that a store has; empty if none."""
    return next((key for key in keys if sync(backend.exists(key))), "")
