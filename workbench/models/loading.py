"""`load_model`: by embedded name, from a local directory, or from the Hub."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils import is_torchvision_available
from transformers.utils import logging as hf_logging

from workbench.errors import ModelError
from workbench.models.conformance.at_load import check_at_load
from workbench.models.families import FAMILIES, family_of
from workbench.models.families.family import Family
from workbench.models.hooked import HookedLVLM

EMBEDDED = {"pocket": "embedded/pocket/pocket", "pocket-base": "embedded/pocket/pocket-base"}
PLANTED = ("planted", "planted-pair")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | Path,
    *,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> HookedLVLM:
    """Load a model and let it prove that masks act on it and that looking changes nothing.

    Args:
        name: "pocket", "pocket-base", "planted", "planted-pair"; a local directory written by `save_pretrained`
            (weights and processor or tokenizer together); or a Hub id.
        dtype: float32, float64, bfloat16 or float16.
        device: Where to put the model; by default the GPU if there is one.
        device_map: Passed to transformers for models larger than one device, e.g. "auto"; then `device` stays unset.
        revision: Branch, tag or commit on the Hub.
        quantization_config: Passed to transformers (8-bit, 4-bit), where the user has the library.
        trust_remote_code: Run code that a checkpoint brings along. Off unless asked for by name.
        check: Run the self-check at load.

    Raises:
        ModelError: Nothing there, an unsupported architecture, a missing processor.
        SelfCheckError: The model failed to prove itself.

    Examples:
        >>> import workbench as wb
        >>> model = wb.load_model("planted")
        >>> model
        HookedLVLM('planted', llava, 4 layers x 4 heads, float32 on cpu)
        >>> model.truth
        {'planted': [(3, 1)], 'decoy': (0, 2)}
    """
    name = str(name)
    if dtype not in DTYPES:
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    if device is not None and device_map is not None:
        raise ModelError(f"Give either device={device!r} or device_map={device_map!r}, not both.")
    place = _device(device) if device_map is None else None
    if name in PLANTED:
        model = _planted(name)
        model.hf.to(DTYPES[dtype])
    else:
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        weights = {"dtype": DTYPES[dtype], "device_map": device_map, "quantization_config": quantization_config}
        model = _pretrained(name, options, {k: v for k, v in weights.items() if v is not None})
    if place is not None:
        model.hf.to(place)
    if check:
        check_at_load(model)
    return model


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {device!r} cannot be used here ({error}). Leave it out, or say device='cpu'."
        ) from error
    return wanted


def _planted(name: str) -> HookedLVLM:
    from workbench.models.embedded.planted import build_planted, planted_truth

    pair = name == "planted-pair"
    hf, processor = build_planted(pair=pair)
    return HookedLVLM(
        hf, family_of("llava"), name=name, tokenizer=processor.tokenizer, processor=processor, truth=planted_truth(pair)
    )


def _pretrained(name: str, options: dict[str, Any], weights: dict[str, Any]) -> HookedLVLM:
    where = _folder(name)
    if Path(where).is_dir():
        options = {**options, "local_files_only": True}
    settings = _attempt(name, "its configuration", lambda: PreTrainedConfig.get_config_dict(where, **options)[0])
    family = family_of(settings.get("model_type", ""))
    before, shows_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    if name in EMBEDDED:
        hf_logging.disable_progress_bar()  # over before it could be read
    try:
        hf: Any = _attempt(
            name,
            "its weights",
            lambda: family.model_class().from_pretrained(where, use_safetensors=True, **weights, **options),
        )
        if family.has_images:
            processor = _attempt(name, "its processor", lambda: _processor(where, family, options))
            tokenizer = getattr(processor, "tokenizer", None)
            if tokenizer is None:
                raise ModelError(f"{name!r}: its processor ({type(processor).__name__}) has no tokenizer.")
        else:
            processor = None
            tokenizer = _attempt(name, "its tokenizer", lambda: AutoTokenizer.from_pretrained(where, **options))
    finally:
        hf_logging.set_verbosity(before)
        if shows_bars:
            hf_logging.enable_progress_bar()
    revision = getattr(hf.config, "_commit_hash", None) or options.get("revision") or ""
    return HookedLVLM(hf, family, name=name, tokenizer=tokenizer, processor=processor, revision=str(revision))


def _processor(where: str, family: Family, options: dict[str, Any]) -> Any:
    """transformers' own; without torchvision, the family's own way where transformers' class demands it."""
    if family.processor is not None and (family.own_class is not None or not is_torchvision_available()):
        return family.processor(where, options)
    return AutoProcessor.from_pretrained(where, **options)


def _folder(name: str) -> str:
    if name in EMBEDDED:
        return str(Path(__file__).parent / EMBEDDED[name])
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name!r} is a directory without config.json, so not a checkpoint. Save one with save_pretrained."
            )
        return str(path)
    if path.suffix or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"There is no model {name!r}: not an embedded name ({', '.join([*EMBEDDED, *PLANTED])}), not a directory "
            "here, and not a Hub id of the form owner/name."
        )
    return name


def _attempt(name: str, what: str, load: Any) -> Any:
    """Call a transformers loader; say what could not be loaded, and why, in one sentence of ours."""
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"{name!r}: {what} could not be loaded ({type(error).__name__}: {reason}). A checkpoint directory needs "
            "config.json, safetensors weights and the processor's (or tokenizer's) files together; a Hub id needs the "
            f"network or a local cache. Supported model types: {', '.join(sorted(FAMILIES))}."
        ) from error
