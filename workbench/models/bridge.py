"""The door to TransformerLens: its bridge over a second module tree that shares the model's weights.

The bridge is built from the already loaded model, never by TransformerLens' own boot, which may run pip when a
processor fails to load.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module, detect_tokenizer_bos_eos

from workbench.errors import ModelError
from workbench.models.decoder import Decoder
from workbench.models.encode import Encoded
from workbench.models.families.adapters import has_adapter
from workbench.models.precision import double_kept
from workbench.models.probes import eager_tolerance, relative_error


def build_bridge(model: Decoder, probes: Sequence[Encoded]) -> Any:
    """A `TransformerBridge` on the same storage: hook names, `run_with_cache`, `run_with_hooks`, `generate`.

    TransformerLens goes by the architecture's name, and a text model of another kind inside it may be more than its
    bridge knows of; so the bridge is held against the model before anyone relies on it.

    Args:
        model: What it is built for.
        probes: Prompts on which its logits and final states must be the model's.

    Raises:
        ModelError: When TransformerLens has no adapter for the architecture, or one that is not right for this model.
    """
    if not has_adapter(model.family.architecture):
        raise ModelError(
            f"TransformerLens has no adapter for {model.family.architecture}, so {model.name!r} has no hook names "
            "there. Sweeps and masks work without it; `workbench models` lists what each family supports."
        )
    try:
        bridge = _built(model)
        worst = max(_error(model, bridge, encoded) for encoded in probes)
    except Exception as error:  # whatever TransformerLens raises on a model that it takes for another
        raise ModelError(_unfit(model, f"it fails on it ({type(error).__name__}: {error})")) from error
    if not worst <= eager_tolerance(model):
        raise ModelError(_unfit(model, f"its logits or states differ by {worst:.1e} of the largest value"))
    return bridge


def _unfit(model: Decoder, why: str) -> str:
    text = type(model.decoder).__name__
    return (
        f"TransformerLens' bridge for {model.family.architecture} is not right for {model.name!r}, whose text model "
        f"is {text}: {why}. So there is no run_with_hooks, run_with_cache or engine='naive' for it; engine='exact' and "
        "all else work without the bridge."
    )


def _built(model: Decoder) -> Any:
    twin = twin_of(model)
    bridge = build_bridge_from_module(twin, model.family.architecture, hf_config=twin.config, model_name=model.name)
    # TransformerLens' own set-up would load the tokenizer anew from where it came from, and change this one.
    bridge.tokenizer = model.tokenizer
    bridge.cfg.tokenizer_prepends_bos, bridge.cfg.tokenizer_appends_eos = detect_tokenizer_bos_eos(model.tokenizer)
    if model.processor is not None:
        bridge.processor = model.processor
    return bridge


def _error(model: Decoder, bridge: Any, encoded: Encoded) -> float:
    """Largest relative error of the bridge's logits and final states at all positions."""
    kept: list[Tensor] = []
    handle = model.final_norm.register_forward_hook(lambda module, args, output: kept.append(output))
    inputs = dict(encoded.model_inputs)
    with model.lock, torch.no_grad(), double_kept(model.dtype):
        try:
            logits = model.hf(**inputs, use_cache=False).logits
        finally:
            handle.remove()
        hooks = [("ln_final.hook_out", lambda value, hook: kept.append(value))]
        theirs = bridge.run_with_hooks(inputs.pop("input_ids"), fwd_hooks=hooks, **inputs)
    return max(relative_error(theirs, logits.to(theirs)), relative_error(kept[1], kept[0]))


def twin_of(model: Decoder) -> Any:
    """A second transformers model on the same parameters and buffers, with eager attention and no sites."""
    shared = {id(t): t for t in [*model.hf.parameters(), *model.hf.buffers()]}
    twin = copy.deepcopy(model.hf, memo=shared)
    for attention in model.family.attentions(twin).values():
        del attention.workbench_site
        attention.config._attn_implementation = "eager"
    model.family.decoder(twin).config._attn_implementation = "eager"
    return twin
