"""`load_model`: by embedded name, from a directory, a GGUF file or the Hub, or around a model that is held already."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
from transformers import AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as hf_logging

from workbench.checking import Converted, OneOf, Place, checked, plainly
from workbench.errors import ModelError
from workbench.models.checkpoint import attempt, refuse_broken_weights, refuse_incomplete, refuse_strange_files
from workbench.models.conformance.at_load import check_at_load
from workbench.models.families import family_of
from workbench.models.families.family import Family
from workbench.models.families.processors import with_pillow
from workbench.models.held import around
from workbench.models.hooked import HookedLVLM
from workbench.models.templates import read_template

POCKETS = [f"pocket{base}{seed}" for seed in ("", "-1", "-2") for base in ("", "-base")]
EMBEDDED = {name: f"embedded/pocket/{name}" for name in POCKETS}
PLANTED = ("planted", "planted-pair", "null")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_SECONDS = 3.0  # the Hub's time to answer at all, before what is cached here is taken


def _name(value: Any) -> Any:
    return Place().check(value) if isinstance(value, str | Path) else value


@checked
def load_model(
    name: Annotated[Any, Converted(_name)],
    *,
    processor: Any = None,
    template: str | Path = "chat",
    dtype: Annotated[str, OneOf(DTYPES)] = "float32",
    device: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
    quantization_config: Any = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> HookedLVLM:
    """Load a model and let it prove that masks act on it and that looking changes nothing.

    Args:
        name: "pocket" and "pocket-base" (the same before its safety tuning), trained from two more seeds as "pocket-1",
            "pocket-base-1", "pocket-2" and "pocket-base-2"; "planted", "planted-pair", "null" (Planted without its
            planted head, on which nothing may be found); a local directory written by `save_pretrained` (weights and
            processor or tokenizer together); a `.gguf` file; a Hub id; or a model that is loaded already:
            transformers', one that peft wraps in adapters, or a TransformerLens bridge. It is taken over as it is: set
            to evaluation, without gradients, with our attention function.
        processor: With a model that is loaded already: its processor; of a text-only model, its tokenizer. A bridge
            may bring its own.
        template: How a prompt is put to the model: "chat", by its own chat template; "raw", the picture's placeholder
            and the text alone, for models that were never taught to chat; or a Jinja template, or a file with one.
        dtype: float32, float64, bfloat16 or float16.
        device: Where to put the model; by default the GPU if there is one.
        device_map: Passed to transformers for models larger than one device, e.g. "auto"; then `device` stays unset.
            Layers that it keeps on the CPU or the disk are brought back whenever they are needed.
        revision: Branch, tag or commit on the Hub.
        quantization_config: Passed to transformers (8-bit, 4-bit), where the user has the library.
        trust_remote_code: Run code that a checkpoint brings along. Off unless asked for by name.
        check: Run the self-check at load.

    Raises:
        ModelError: Nothing there, an unsupported architecture, weights that are missing or not all numbers, a missing
            processor.
        SelfCheckError: The model failed to prove itself.

    Examples:
        >>> import workbench as wb
        >>> model = wb.load_model("planted")
        >>> model
        HookedLVLM('planted', llava, 4 layers x 4 heads, float32 on cpu)
        >>> model.truth
        {'planted': [(3, 1)], 'decoy': (0, 2)}
    """
    template = read_template(template)
    if device is not None and device_map is not None:
        raise ModelError(f"Give either device={device!r} or device_map={device_map!r}, not both.")
    if not isinstance(name, str | Path):
        model, place = around(name, processor), None
    elif processor is not None:
        raise ModelError(f"processor= goes with a model that is loaded already; {str(name)!r} brings its own.")
    else:
        name, place = str(name), _device(device) if device_map is None else None
        if name in PLANTED:
            model = _planted(name)
            model.hf.to(DTYPES[dtype])
        else:
            options = {"revision": revision, "trust_remote_code": trust_remote_code}
            weights = {"dtype": DTYPES[dtype], "device_map": device_map, "quantization_config": quantization_config}
            model = _pretrained(name, options, {k: v for k, v in weights.items() if v is not None})
    model.template = template
    refuse_broken_weights(model)
    if place is not None:
        model.hf.to(place)
    if check:
        check_at_load(model)
    return model


def as_model(value: Any) -> HookedLVLM:
    """The model that is meant: one that is loaded, or a name or path that `load_model` takes.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(value, str | Path):
        return load_model(value)
    if not isinstance(value, HookedLVLM):
        raise ValueError("must be a model from workbench.load_model, or a name or path that it takes")
    return value


SomeModel = Annotated[HookedLVLM | str | Path, Converted(as_model)]


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"device {plainly(device)} cannot be used here ({error}). Leave it out, or say device='cpu'."
        ) from error
    if wanted.type == "meta":
        raise ModelError("device 'meta' holds no numbers, so nothing can be computed there. Say device='cpu'.")
    return wanted


def _planted(name: str) -> HookedLVLM:
    from workbench.models.embedded.planted import build_null, build_planted, planted_truth

    pair = name == "planted-pair"
    hf, processor = build_null() if name == "null" else build_planted(pair=pair)
    truth = None if name == "null" else planted_truth(pair)
    return HookedLVLM(
        hf, family_of("llava"), name=name, tokenizer=processor.tokenizer, processor=processor, truth=truth
    )


def _pretrained(name: str, options: dict[str, Any], weights: dict[str, Any]) -> HookedLVLM:
    where, file = _place(name)
    if file:
        options = {**options, "gguf_file": file}
    if Path(where).is_dir() or not _hub_answers(where):
        options = {**options, "local_files_only": True}
    settings = attempt(name, "its configuration", lambda: PreTrainedConfig.get_config_dict(where, **options)[0])
    if not isinstance(settings, dict):
        raise ModelError(
            f"config.json of {name} holds a {type(settings).__name__}; an object was wanted. Save it again."
        )
    family = family_of(str(settings.get("model_type", "")))
    if not file:
        refuse_strange_files(name, where, options)
    before, shows_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    if name in EMBEDDED:
        hf_logging.disable_progress_bar()  # over before it could be read
    wanted = {"use_safetensors": not file, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        hf, found = attempt(
            name, "its weights", lambda: family.model_class().from_pretrained(where, **wanted, **weights, **options)
        )
        refuse_incomplete(name, found)
        if family.has_images:
            processor = attempt(name, "its processor", lambda: _processor(where, family, options))
            tokenizer = getattr(processor, "tokenizer", None)
            if tokenizer is None:
                raise ModelError(f"{name!r}: its processor ({type(processor).__name__}) has no tokenizer.")
        else:
            processor = None
            tokenizer = attempt(name, "its tokenizer", lambda: AutoTokenizer.from_pretrained(where, **options))
    finally:
        hf_logging.set_verbosity(before)
        if shows_bars:
            hf_logging.enable_progress_bar()
    revision = str(getattr(hf.config, "_commit_hash", None) or options.get("revision") or "")
    parts = {"name": name, "tokenizer": tokenizer, "processor": processor, "revision": revision}
    return attempt(name, "its parts", lambda: HookedLVLM(hf, family, **parts))


def _processor(where: str, family: Family, options: dict[str, Any]) -> Any:
    """The family's own where it has one, else transformers'; what comes out does not depend on torchvision."""
    found = family.processor(where, options) if family.processor else AutoProcessor.from_pretrained(where, **options)
    return with_pillow(found, where, options)


def _place(name: str) -> tuple[str, str]:
    """Where a checkpoint lies, and the name of the one file it is in, if it is."""
    if name in EMBEDDED:
        return str(Path(__file__).parent / EMBEDDED[name]), ""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"There is no file {name}.")
        if find_spec("gguf") is None:
            raise ModelError("Reading a .gguf file needs: pip install 'lvlm-workbench[gguf]'.")
        return str(path.parent), path.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            what = "an adapter without its model" if (path / "adapter_config.json").exists() else "not a checkpoint"
            raise ModelError(
                f"{name!r} is a directory without config.json, so {what}. Save one with save_pretrained"
                f"{' after merge_and_unload()' if 'adapter' in what else ''}."
            )
        return str(path), ""
    if path.suffix or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ModelError(
            f"There is no model {name!r}: not an embedded name ({', '.join([*EMBEDDED, *PLANTED])}), not a directory "
            "or a .gguf file here, and not a Hub id of the form owner/name."
        )
    return name, ""


def _hub_answers(repository: str) -> bool:
    """Whether the Hub can be reached: one attempt, where transformers would make dozens, file by file."""
    from huggingface_hub import constants, get_session, is_offline_mode

    if is_offline_mode():
        return False
    try:
        get_session().head(f"{constants.ENDPOINT}/{repository}", timeout=HUB_SECONDS)
    except Exception:  # noqa: BLE001  # of whatever library it speaks through: no answer is no answer
        return False
    return True
