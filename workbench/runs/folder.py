"""The folder of a stored run: its one writer, and what goes wrong on a disk, in words."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.errors import RunError
from workbench.runs.places import backend_of
from workbench.runs.sealed import ROOT

MANIFEST = "manifest"


class Folder:
    """Where one run is stored: a local folder with a lock, or an address without one."""

    def __init__(self, path: str | Path, *, read_only: bool) -> None:
        self.path, self.read_only = str(path), read_only
        self.backend, self.local = backend_of(path, read_only=read_only)
        self.lock: FileLock | None = None

    def take_lock(self) -> None:
        """Become the only writer, on a local disk; RunError when there is another."""
        if self.local is None:
            return
        with self.writing(begun=False):
            folder = self.local / MANIFEST
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(str(folder / "lock"), thread_local=False)
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                self.lock = None
                raise RunError(
                    f"Another process is writing {self.path}. Wait for it to end, or store this run elsewhere. "
                    "(A process that died holds no lock.)"
                ) from None
            for torn in self.local.rglob("*.partial"):  # of a writer that was killed between two bytes
                torn.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go of the lock, and leave nothing behind where nothing was laid out."""
        if self.lock is None or self.local is None:
            return
        self.lock.release()
        self.lock = None
        if not (self.local / ROOT).exists():
            (self.local / MANIFEST / "lock").unlink(missing_ok=True)
            with suppress(OSError):  # a folder that is not empty is somebody else's
                (self.local / MANIFEST).rmdir()
                self.local.rmdir()

    def clear(self) -> None:
        """Take away what a writer that was killed while laying out a run has left; never the lock."""
        for path in () if self.local is None else (*self.local.iterdir(), *(self.local / MANIFEST).iterdir()):
            if path.name not in (MANIFEST, "lock"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextmanager
    def writing(self, *, begun: bool = True) -> Iterator[None]:
        """What fails on the disk inside comes as a RunError that says what to do."""
        if begun and self.local is not None and not (self.local / ROOT).exists():
            raise RunError(
                f"{self.path} was moved, renamed or deleted while it was being written. What was stored is where it is "
                "now; make the same call again with the path that it has now."
            )
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            what, mend = ("the disk is full", "make room") if full else (f"writing failed ({error})", "mend that")
            raise RunError(
                f"{self.path}: {what}. What was stored before is kept; {mend} and make the same call again to go on."
            ) from error
