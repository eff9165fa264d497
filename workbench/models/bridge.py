"""The door to TransformerLens: its bridge over a second module tree that shares the model's weights.

The bridge is built from the already loaded model, never by TransformerLens' own boot, which may run pip when a
processor fails to load.
"""

import copy
from typing import Any

from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module, detect_tokenizer_bos_eos

from workbench.errors import ModelError
from workbench.models.decoder import Decoder
from workbench.models.families.adapters import has_adapter


def build_bridge(model: Decoder) -> Any:
    """A `TransformerBridge` on the same storage: hook names, `run_with_cache`, `run_with_hooks`, `generate`.

    Raises:
        ModelError: When TransformerLens has no adapter for the architecture.
    """
    if not has_adapter(model.family.architecture):
        raise ModelError(
            f"TransformerLens has no adapter for {model.family.architecture}, so {model.name!r} has no hook names "
            "there. Sweeps and masks work without it; `workbench models` lists what each family supports."
        )
    twin = twin_of(model)
    bridge = build_bridge_from_module(twin, model.family.architecture, hf_config=twin.config, model_name=model.name)
    # TransformerLens' own set-up would load the tokenizer anew from where it came from, and change this one.
    bridge.tokenizer = model.tokenizer
    bridge.cfg.tokenizer_prepends_bos, bridge.cfg.tokenizer_appends_eos = detect_tokenizer_bos_eos(model.tokenizer)
    if model.processor is not None:
        bridge.processor = model.processor
    return bridge


def twin_of(model: Decoder) -> Any:
    """A second transformers model on the same parameters and buffers, with eager attention and no sites."""
    shared = {id(t): t for t in [*model.hf.parameters(), *model.hf.buffers()]}
    twin = copy.deepcopy(model.hf, memo=shared)
    for attention in model.family.attentions(twin).values():
        del attention.workbench_site
        attention.config._attn_implementation = "eager"
    model.family.decoder(twin).config._attn_implementation = "eager"
    return twin
