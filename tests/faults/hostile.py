"""What tests of hostile files share: how a file is broken, and that it is refused in words and nothing of it runs."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import WorkbenchError

SECONDS = 60  # for what takes a second; a hang is what is looked for
RAN = "a-file-that-was-run"


class Runs:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> Any:
        return os.mkdir, (RAN,)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(change(document) or document), encoding="utf-8")


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def written(name: str, data: bytes | str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)

    return act


def refused(act: Callable[[], Any]) -> str:
    began = time.monotonic()
    with pytest.raises(WorkbenchError) as error:
        act()
    assert time.monotonic() - began < SECONDS
    assert not Path(RAN).exists()
    said = str(error.value)
    assert 20 < len(said) < 5000, said[:300]
    return said
