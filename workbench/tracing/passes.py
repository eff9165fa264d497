"""The unmasked passes of two twins in one batch, and what a decoder's parts gave them, put into one another."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from workbench.errors import ModelError
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import BasePass, base_pass, walk
from workbench.runs.effects import check_states, measure, refusal_log_odds, wide
from workbench.tracing.pairs import Pair
from workbench.tracing.records import MEASURES


class TwinPass:
    """The unmasked passes of a pair: line 0 is the unsafe prompt, line 1 the safe one.

    Attributes:
        base: As `base_pass` records it.
        mlp_out: What the MLP of each layer gave, `[prompt, pos, d_model]`; by layer.
        state: Final states, read as a walk reads them, so that a walk that changes nothing gives them bit for bit.
    """

    def __init__(self, model: HookedLVLM, twins: Pair) -> None:
        self.model, self.twins = model, twins
        self.mlp_out: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer in model.masked_layers:
                keep = partial(self._keep, layer)
                stack.enter_context(mlp_of(model, layer).register_forward_hook(keep))
            self.base: BasePass = base_pass(model, twins.encoded)
        top = max(self.base.inputs)
        self.residual = walk(model, self.base, top)[model.n_layers - 1]
        self.state = model.normed(self.residual)
        check_states(model, self.state[:, None], self.logits[:, None], self.ids)

    def _keep(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        given = output[0] if isinstance(output, tuple) else output
        self.mlp_out[layer] = given.view(len(self.twins.encoded), -1, given.shape[-1])

    @cached_property
    def logits(self) -> Float[Tensor, "prompt vocab"]:
        """Next-token logits."""
        return self.model.unembed(self.state)

    @cached_property
    def refusal(self) -> Float[Tensor, " prompt"]:
        """Log-odds that the next token opens a refusal."""
        return refusal_log_odds(self.model, wide(self.logits))

    @property
    def ids(self) -> list[str]:
        return [e.prompt_id for e in self.twins.encoded]

    def above(self, layer: int) -> int | None:
        """The next layer that ran; None above the last."""
        return next((n for n in sorted(self.base.inputs) if n > layer), None)

    def measured(
        self, states: Float[Tensor, "prompt row d_model"], rows: list[str], *, towards: bool = True
    ) -> dict[str, Float[Tensor, "prompt row"]]:
        """How far states are from those of their own prompt and, with `towards`, from the other twin's."""
        found = measure(self.model, self.state, self.logits, states, measures=MEASURES, prompts=self.ids, rows=rows)
        if towards:
            own, goal, now = wide(self.state)[:, None], wide(self.state.flip(0))[:, None], wide(states)
            gap = goal - own
            # Of equal twins there is nothing to recover: 0 / 0, which is not a number.
            found["recovered"] = ((now - own) * gap).sum(-1) / (gap * gap).sum(-1)
            found["left"] = (now - goal).norm(dim=-1)
        return found


def mlp_of(model: HookedLVLM, layer: int) -> nn.Module:
    """The MLP of a layer, or its experts.

    Raises:
        ModelError: The family says no name under which the layer has one.
    """
    if (found := getattr(model.layers[layer], model.family.mlp, None)) is None:
        names = ", ".join(name for name, _ in model.layers[layer].named_children())
        raise ModelError(
            f"Layer {layer} of {model.name!r} has no `{model.family.mlp}`; it has {names}. Say the name of its MLP in "
            f"the family {model.family.name!r} (Family(mlp=…)), or trace other components."
        )
    return found


@contextmanager
def put_in(
    module: nn.Module,
    values: Float[Tensor, "prompt pos d_model"],
    where: Bool[Tensor, "row pos ..."],
    *,
    at: Literal["input", "output"],
    whole: bool = False,
) -> Iterator[None]:
    """For a block, what goes into a module or comes out of it is `values` where `where` says so; else as it was.

    Lines are prompt-major, each prompt with the rows of `where`. A call on fewer positions is on the last ones, or with
    `whole` left as it is: a decoding step has a single position of its own.

    Args:
        module: Its first argument or its output is changed.
        values: `[prompt, pos, channel]`.
        where: `[row, pos]`, or `[row, pos, channel]`.
        at: Which of the two.
        whole: Act only on calls on all positions.
    """
    n_prompts, n_rows = values.shape[0], where.shape[0]
    where = where if where.ndim == 3 else where[..., None]

    def put(now: Tensor) -> Tensor:
        split = now.reshape(n_prompts, n_rows, -1, now.shape[-1])
        n_pos = split.shape[2]
        if whole and n_pos != values.shape[1]:
            return now
        there = where[None, :, -n_pos:].to(now.device)
        return torch.where(there, values[:, None, -n_pos:].to(now), split).view_as(now)

    def put_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (put(args[0]), *args[1:])

    def put_output(module: nn.Module, args: Any, output: Any) -> Any:
        return (put(output[0]), *output[1:]) if isinstance(output, tuple) else put(output)

    hook: Any = (
        module.register_forward_pre_hook(put_input) if at == "input" else module.register_forward_hook(put_output)
    )
    try:
        yield
    finally:
        hook.remove()
