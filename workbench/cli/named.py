"""Which model a command is about, with the options that `load_model` takes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.cli.options import Device, Dtype, Template, grouped

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM


@dataclass(frozen=True)
class Named:
    """The model that a command line names."""

    name: str
    template: str = "chat"
    dtype: str = "float32"
    device: str | None = None


def named(model: "str | Named") -> Named:
    """The model that a command is about, with the options' defaults where it is given by name alone."""
    return Named(model) if isinstance(model, str) else model


def loaded(model: "str | Named", **more: Any) -> "HookedLVLM":
    """That model itself; `more` is for `load_model`."""
    from workbench.models.loading import load_model

    asked = named(model)
    return load_model(asked.name, template=asked.template, dtype=asked.dtype, device=asked.device, **more)


with_model = grouped(
    "model",
    {"template": (Template, "chat"), "dtype": (Dtype, "float32"), "device": (Device, None)},
    lambda name, options: None if name is None else Named(name, **options),
)
"""A command whose parameter `model` comes as `Named`, with how it is loaded; or as None, where none was given."""
