"""What a stored run says about itself: its attributes and the metadata of its arrays, under one checksum (the seal).

The root's `zarr.json` is written whole, last, and by nobody but this file. It holds the attributes, a copy of every
array's metadata for readers, and the SHA-256 of both. Before Zarr is let near a store, everything it would build from
that metadata is looked at: the format, the codecs, and how large the arrays say they are.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from zarr.abc.store import Store as Backend

from workbench.errors import RunError
from workbench.runs.places import holds, read_json, write_json
from workbench.runs.schema import SCHEMA

ROOT = "zarr.json"
SEAL = "seal"
CODECS = {"bytes", "vlen-utf8", "zstd", "crc32c", "sharding_indexed"}  # those that a run is written with
DATA_TYPES = {"bool", "string", "int32", "int64", "uint8", "float32", "float64"}
# Far beyond any run; a store that claims more would only fill the memory of whoever opens it.
MOST = {"prompt": 2**24, "projection": 2, "layer": 2**12, "head": 2**12, "readout": 2**12, "group": 2**22}
MOST_ELSE, MOST_ELEMENTS, MOST_CHUNK = 2**18, 2**42, 2**31


def write_root(backend: Backend, attrs: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write the root of a run: attributes, the metadata of its arrays and groups by path, and the seal over both."""
    attrs = {name: value for name, value in attrs.items() if name != SEAL}
    write_json(
        backend,
        ROOT,
        {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {**attrs, SEAL: seal(attrs, arrays)},
            "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": dict(arrays)},
        },
    )


def seal(attrs: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """SHA-256 over attributes and metadata."""
    plain = {"attributes": {k: v for k, v in attrs.items() if k != SEAL}, "arrays": dict(arrays)}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_root(backend: Backend, where: str) -> dict[str, Any] | None:
    """The root document of a Zarr 3 group; None where there is nothing.

    Raises:
        RunError: It cannot be read, or is of Zarr's format 2, which is never opened.
    """
    if old := holds(backend, ".zgroup", ".zarray", ".zmetadata", ".zattrs"):
        raise RunError(
            f"{where} holds {old!r}: it is a store of Zarr's format 2, whose filters may run code, and is not opened. "
            "Runs are stored in format 3. Sweep again into another path."
        )
    try:
        document = read_json(backend, ROOT)
        if document is not None and document.get("zarr_format") != 3:
            raise ValueError(f"zarr_format is {document.get('zarr_format')!r}")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{where}: its metadata (zarr.json) cannot be read ({type(error).__name__}: {error}). Nothing was "
            "overwritten; restore that file from a copy, or move the folder away and sweep again."
        ) from error
    return document


def attributes_of(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The attributes of a run's root document.

    Raises:
        RunError: It is no run's, or of another schema.
    """
    attrs = document.get("attributes", {})
    if "schema" not in attrs or document.get("node_type") != "group":
        raise RunError(f"{where} is a Zarr group, but not a run of the workbench. Choose another path.")
    schema = str(attrs["schema"])
    if schema != SCHEMA:
        newer = not schema.isdigit() or int(schema) > int(SCHEMA)
        what_to_do = (
            "Use the newer version of the workbench that wrote it."
            if newer
            else "Its chunks have no checksums, and its recipe does not cover all that the model was given. "
            "Sweep again into another path, or read it with the version that wrote it."
        )
        raise RunError(
            f"{where} has schema {schema!r}; this version reads {SCHEMA!r}. {what_to_do} Nothing was overwritten."
        )
    return dict(attrs)


def checked_arrays(backend: Backend, document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Metadata of a run's arrays and groups by path, once all of it is sealed, known and of a size to be opened.

    Raises:
        RunError: Attributes or metadata that were changed; codecs or data types of no run; sizes beyond all bounds.
    """
    try:
        attrs = document["attributes"]
        own = {str(path): read_json(backend, f"{path}/{ROOT}") for path in attrs["arrays"]}
        shown = (document.get("consolidated_metadata") or {"metadata": own})["metadata"]
        changed = [path for path in own if own[path] != shown.get(path)] + sorted(set(shown) - set(own))
        if changed or attrs[SEAL] != seal(attrs, own):
            raise RunError(
                f"{where} is damaged: what it says about {changed[0] if changed else 'itself (its attributes)'} is not "
                "what was written. Nothing was overwritten; restore its zarr.json files from a copy, or sweep again "
                "into another path."
            )
        for path, metadata in own.items():
            if metadata["node_type"] == "array":
                _check_array(path, metadata, where)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{where}: its metadata is not that of a run ({type(error).__name__}: {error}). Nothing was overwritten; "
            "restore its zarr.json files from a copy, or sweep again into another path."
        ) from error
    return own


def _check_array(path: str, metadata: Mapping[str, Any], where: str) -> None:
    names = list(_codec_names(metadata["codecs"]))
    if wrong := sorted(set(names) - CODECS):
        raise RunError(
            f"{where}: {path} wants the codec {wrong[0]!r}. A run is written with {', '.join(sorted(CODECS))}, and "
            "nothing else is opened. Sweep again into another path."
        )
    if metadata["data_type"] not in DATA_TYPES or metadata.get("storage_transformers"):
        raise RunError(f"{where}: {path} has the data type {metadata['data_type']!r}, which no run has.")
    shape, dims = metadata["shape"], metadata["dimension_names"]
    chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    whole = all(isinstance(n, int) and n >= 0 for n in (*shape, *chunk)) and len(shape) == len(chunk) == len(dims)
    bounded = whole and all(n <= MOST.get(dim, MOST_ELSE) for n, dim in zip(shape, dims, strict=True) if dim != "slot")
    if not bounded or math.prod(shape) > MOST_ELEMENTS or 8 * math.prod(chunk) > MOST_CHUNK:
        raise RunError(f"{where}: {path} says it has shape {shape} in chunks of {chunk}, which no run has.")


def _codec_names(codecs: Any) -> Iterator[str]:
    for codec in codecs:
        yield codec["name"]
        for inner in ("codecs", "index_codecs"):
            yield from _codec_names(codec.get("configuration", {}).get(inner, ()))
