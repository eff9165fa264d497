"""Files of detectors that someone changed: each is refused in words, before a number comes of it."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.unit.planted_parts import model, prompts, split
from workbench.detectors import HiddenDetect, JudgeDetector, OneHeadDetector, SAHsDetector, load_detector
from workbench.detectors.stored import LARGEST
from workbench.errors import DetectorError, WorkbenchError

MAKERS = {
    "one-head": lambda: OneHeadDetector(head=(3, 1)),
    "sahs": lambda: SAHsDetector(k=2),
    "hidden-detect": lambda: HiddenDetect(),
    "judge": lambda: JudgeDetector(question="{text}", unsafe_word="i", safe_word="sure"),
}
FILE, ARRAYS = "detector.json", "arrays.safetensors"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detectors")
    return {name: make().fit(model(), prompts()).save(folder / name) for name, make in MAKERS.items()}


def changed(path, tmp_path, change, arrays=None):
    """A copy of a stored detector in which something is otherwise."""
    described, kept = json.loads((path / FILE).read_text()), load_file(path / ARRAYS)
    change(described)
    (tmp_path / FILE).write_text(json.dumps(described))
    save_file(arrays(kept) if arrays else kept, tmp_path / ARRAYS)
    return tmp_path


def put(*keys, value):
    def change(described):
        for key in keys[:-1]:
            described = described[key]
        described[keys[-1]] = value

    return change


CHANGES = [
    ("one-head", put("threshold", value=float("nan"))),
    ("one-head", put("threshold", value=float("inf"))),
    ("one-head", put("threshold", value="5")),
    ("one-head", put("threshold", value=True)),
    ("one-head", put("threshold", value=None)),
    ("one-head", put("threshold_rule", value="mean")),
    ("one-head", put("threshold_rule", value=[])),
    ("one-head", put("learned", "head", value=[9, 9])),
    ("one-head", put("learned", "head", value=[-1, 0])),
    ("one-head", put("learned", "head", value=[3.0, 1.0])),
    ("one-head", put("learned", "head", value=None)),
    ("one-head", put("learned", "candidates", value="all")),
    ("one-head", put("learned", "more", value=1)),
    ("one-head", put("learned", value=[])),
    ("one-head", put("options", "criterion", value="kindness")),
    ("one-head", put("options", "criterion", value=["deflection"])),
    ("one-head", put("options", "projection", value="../query")),
    ("one-head", put("options", "mask", "factor", value="0")),
    ("one-head", put("options", "mask", value={"form": "__class__"})),
    ("one-head", put("options", "k", value=0)),
    ("one-head", put("options", "seed", value=-1)),
    ("one-head", put("options", "__init__", value=1)),
    ("one-head", put("options", value=7)),
    ("one-head", put("weight_hash", value=3)),
    ("one-head", put("weight_hash", value="")),
    ("one-head", put("model", value={})),
    ("one-head", put("calibration", value=[])),
    ("one-head", put("calibration", "selection_prompts", value=[[1]])),
    ("one-head", put("name", value="../one-head")),
    ("one-head", put("name", value=["one-head"])),
    ("one-head", put("name", value="sahs")),
    ("one-head", put("format", value="workbench-detector-1")),
    ("one-head", put("format", value="\x1b[31m")),
    ("sahs", put("learned", "intercept", value=None)),
    ("sahs", put("learned", "heads", value=[[0, 99], [0, 1]])),
    ("sahs", put("learned", "heads", value=[[0, 1]])),
    ("sahs", put("learned", "heads", value=[])),
    ("sahs", put("options", "C", value=-1)),
    ("hidden-detect", put("learned", "layers", value=[0, 99])),
    ("hidden-detect", put("learned", "layers", value=[3, 0])),
    ("hidden-detect", put("learned", "layers", value=[1])),
    ("hidden-detect", put("options", "tokens", value=[10**9])),
    ("hidden-detect", put("options", "tokens", value="all")),
    ("judge", put("options", "question", value=5)),
    ("judge", put("options", "unsafe_word", value="")),
    ("judge", put("options", "judge", value="0123456789abcdef")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), CHANGES, ids=range(len(CHANGES)))
def test_a_changed_description_is_refused(stored, tmp_path, name, change):
    path = changed(stored[name], tmp_path, change)
    with pytest.raises(WorkbenchError) as caught:
        load_detector(path).decision_function(model(), split("test")[:2])
    assert len(str(caught.value)) > 40
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("sahs", lambda kept: {"coef": kept["coef"] * np.nan}),
        ("sahs", lambda kept: {"coef": kept["coef"][:-1]}),
        ("sahs", lambda kept: {"coef": kept["coef"][None]}),
        ("sahs", lambda kept: {"coef": kept["coef"].astype(np.int64)}),
        ("sahs", lambda kept: {"other": kept["coef"]}),
        ("sahs", lambda kept: {**kept, "heads": np.zeros((2, 2))}),
        ("sahs", lambda kept: {}),
        ("hidden-detect", lambda kept: {"discrepancy": kept["discrepancy"][:2]}),
        ("one-head", lambda kept: {"threshold": np.ones(1)}),
    ],
    ids=range(9),
)
def test_changed_arrays_are_refused(stored, tmp_path, name, arrays):
    path = changed(stored[name], tmp_path, lambda described: None, arrays)
    with pytest.raises(DetectorError, match=r"finite numbers|does not fit|amiss|must be heads"):
        load_detector(path).decision_function(model(), split("test")[:2])


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "null", "[]", '"workbench-detector-2"', "\udcff", '{"threshold": NaN}', "9" * 10_000],
    ids=range(9),
)
def test_files_that_are_no_description_are_refused(stored, tmp_path, text):
    path = changed(stored["one-head"], tmp_path, lambda described: None)
    (path / FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DetectorError):
        load_detector(path)


def test_files_that_are_too_large_missing_or_no_arrays_are_refused(stored, tmp_path, monkeypatch):
    path = changed(stored["sahs"], tmp_path, lambda described: None)
    for content in (b"", b"\x80\x04cos\nsystem\n", (2**62).to_bytes(8, "little") + b"{}", b"\x00" * 100):
        (path / ARRAYS).write_bytes(content)
        with pytest.raises(DetectorError, match="damaged"):
            load_detector(path)
    (path / ARRAYS).unlink()
    with pytest.raises(DetectorError, match="damaged"):
        load_detector(path)
    monkeypatch.setitem(LARGEST, FILE, 10)
    with pytest.raises(DetectorError, match="at most"):
        load_detector(stored["one-head"])
    for nowhere in (tmp_path / "nothing", tmp_path / FILE, "\x00", "/dev/null", "https://example.org/detector"):
        with pytest.raises(DetectorError):
            load_detector(nowhere)


def test_what_was_not_changed_is_still_read(stored, tmp_path):
    for name, path in stored.items():
        loaded = load_detector(path)
        assert loaded.name == name
        assert np.isfinite(loaded.decision_function(model(), split("test")[:2])).all()
