"""Files of detectors: what is read from one is checked before anything is made of it, and nothing is unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.checking import Place, plainly
from workbench.errors import DetectorError
from workbench.plain import plain

FORMAT = "workbench-detector-2"
DESCRIPTION, ARRAYS = "detector.json", "arrays.safetensors"
LARGEST = {DESCRIPTION: 2**25, ARRAYS: 2**28}  # bytes; a million ids of prompts, heads of the largest models


def write_stored(path: str | Path, description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """Write description and arrays of a detector into a folder, which is made; returns it."""
    from safetensors.numpy import save_file

    path = Path(path)
    if path.exists() and not path.is_dir():
        raise DetectorError(f"A detector is stored as a folder, and {path} is a file. Give another name.")
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, **description}, indent=2) + "\n"
    (path / DESCRIPTION).write_text(text, encoding="utf-8")
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, path / ARRAYS)
    return path


def read_stored(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays of a stored detector of any kind."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        path = Path(Place().check(path)).expanduser()
    except ValueError as error:
        raise DetectorError(f"The folder of a detector {error}; got {plainly(path)}.") from None
    if not (path / DESCRIPTION).is_file():
        raise DetectorError(
            f"There is no stored detector at {path}: a folder with {DESCRIPTION} was wanted. Detector.save writes one."
        )
    try:
        for name in (DESCRIPTION, ARRAYS):
            if (size := (path / name).stat().st_size) > LARGEST[name]:
                raise ValueError(f"{name} has {size} bytes, and a detector's has {LARGEST[name]} at most")
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"), parse_constant=_no_number)
        arrays = load_file(path / ARRAYS)
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError, OSError) as error:
        raise DetectorError(
            f"The detector at {path} is damaged ({type(error).__name__}: {plain(error)}). Fit and save it again."
        ) from error
    if not isinstance(description, dict) or description.get("format") != FORMAT or "name" not in description:
        found = description.get("format") if isinstance(description, dict) else type(description).__name__
        raise DetectorError(
            f"The detector at {path} has format {plainly(found)}; this version reads {FORMAT!r}. Fit and save it again."
        )
    return description, arrays


def finite_number(value: Any) -> float:
    """A stored number; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"a finite number was wanted, not {plainly(value)}")
    return float(value)


def finite_vector(value: Any) -> np.ndarray:
    """A stored array of one dimension; ValueError for anything else."""
    return finite_array(value, 1)


def finite_array(value: Any, dims: int) -> np.ndarray:
    """A stored array of so many dimensions; ValueError for anything else."""
    good = isinstance(value, np.ndarray) and value.ndim == dims and value.dtype.kind == "f"
    if not good or not np.isfinite(value).all():
        raise ValueError(f"an array of finite numbers with {dims} dimension{'s' * (dims > 1)} was wanted")
    return np.asarray(value)


def word(value: Any) -> str:
    """A stored word; ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"text was wanted, not {plainly(value)}")
    return value


def calibration_record(value: Any) -> dict[str, Any]:
    """What a detector says it was calibrated on; the ids keep it from being tested on the same prompts."""
    if not isinstance(value, dict):
        raise ValueError(f"a record of the calibration was wanted, not {plainly(value)}")
    for part in ("selection_prompts", "threshold_prompts"):
        if not isinstance(value[part], list) or not all(isinstance(id_, str) for id_ in value[part]):
            raise ValueError(f"{part} is a list of ids, not {plainly(value[part])}")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number that a detector could use")
