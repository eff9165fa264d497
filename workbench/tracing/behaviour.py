"""What a model says under patches: whole replies, with numbers of the twin put in while the prompt is read."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from workbench.models.hooked import HookedLVLM
from workbench.tracing.pairs import Pair
from workbench.tracing.passes import TwinPass, mlp_of, put_in
from workbench.tracing.records import ALL, COMPONENTS, HEADS


@dataclass(frozen=True)
class Patch:
    """What is taken from the twin.

    Attributes:
        component: "residual" (after the layer), "attention", "mlp", or "heads".
        layer: Of it, 0-based.
        group: Of tokens.
        head: Which one, for "heads".
    """

    component: str
    layer: int
    group: str = ALL
    head: int | None = None

    def __post_init__(self) -> None:
        assert self.component in (*COMPONENTS, HEADS)
        assert (self.head is not None) == (self.component == HEADS)


def patched_replies(
    model: HookedLVLM, twins: Pair, sets: Sequence[Sequence[Patch]], *, max_new_tokens: int = 32
) -> list[tuple[str, str]]:
    """Greedy replies of both twins, each with the other's numbers at some patches while it reads the prompt.

    Args:
        model: The model.
        twins: The pair.
        sets: Patches that are held together; none for the replies as they are. A group that the prompts lack is
            nothing.
        max_new_tokens: Length of a reply at most.

    Returns:
        For each set: of the unsafe prompt with the safe one's numbers, and of the safe one with the unsafe one's.
    """
    found = []
    with model.lock, torch.no_grad():
        passes = TwinPass(model, twins)
        for patches in sets:
            with ExitStack() as stack:
                for patch in patches:
                    _hold(stack, passes, patch)
                out = model.generated(twins.encoded, max_new_tokens=max_new_tokens)
            new = out.sequences[:, out.n_prompt_tokens :]
            unsafe, safe = model.tokenizer.batch_decode(new, skip_special_tokens=True)
            found.append((unsafe.strip(), safe.strip()))
    return found


def _hold(stack: ExitStack, passes: TwinPass, patch: Patch) -> None:
    model, base, layer = passes.model, passes.base, patch.layer
    where = passes.twins.groups[patch.group][None]
    if patch.component == HEADS:
        values = base.recordings[layer].z.flatten(2)
        channels = torch.arange(values.shape[-1]) // model.d_head == patch.head
        part = put_in(model.output(layer), values.flip(0), where[..., None] & channels, at="input", whole=True)
    elif patch.component == "attention":
        values = base.attention_out[layer]
        part = put_in(model.attentions[layer], values.flip(0), where, at="output", whole=True)
    elif patch.component == "mlp":
        part = put_in(mlp_of(model, layer), passes.mlp_out[layer].flip(0), where, at="output", whole=True)
    elif (above := passes.above(layer)) is not None:
        part = put_in(model.layers[above], base.inputs[above].flip(0), where, at="input", whole=True)
    else:
        last = passes.residual[:, None]
        values = torch.cat([last.new_zeros(2, base.n_pos - 1, last.shape[-1]), last], 1)
        end = where & passes.twins.groups["last"]
        part = put_in(model.final_norm, values.flip(0), end, at="input", whole=True)
    stack.enter_context(part)
