"""Every reader of a published set, over every file it reads, filled with what is no such file."""

import pytest

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.prompts.readers import readers

CONTENTS = {
    "nothing": b"",
    "zero bytes": b"\0" * 64,
    "bytes that are no text": bytes(range(128, 256)) * 8,
    "rows nested deeply": b"[" * 100_000,
    "a mapping": b'{"a": 1}',
    "a list of numbers": b"[1, 2, 3]",
    "other columns": b"one,two\n1,2\n",
    "half a row": b'{"text": "what is',
    "an open quote": b'text,label\n"what is,safe\n',
}
# Lists of plain lines: any line of text is a request there.
LINES = {"bap", "maliciousinstruct", "visualadv"}
NO_TEXT = ("nothing", "zero bytes", "bytes that are no text")
CASES = [
    (name, part, what)
    for name in readers()
    for part in readers()[name].files
    for what in (NO_TEXT if name in LINES else CONTENTS)
]


@pytest.mark.parametrize(("name", "part", "what"), CASES, ids=["-".join(case).replace(" ", "_") for case in CASES])
def test_hostile_set(name, part, what, tmp_path):
    path = tmp_path / readers()[name].files[part][0].replace("*", "one")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENTS[what])
    with pytest.raises(WorkbenchError) as refused:
        wb.load_prompts(name, root=tmp_path, part=part)
    assert 20 < len(str(refused.value)) < 3000


@pytest.mark.parametrize("name", readers())
def test_hostile_set_folder(name, tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(WorkbenchError, match=f"{tmp_path}"):
            wb.load_prompts(name, root=root)
