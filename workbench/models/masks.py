"""`Mask`: what masking a head means. Every result names site, grain, factor and positions.

| projection | form | what happens to the head |
|---|---|---|
| query | `limit` | attention becomes even over the keys it may see: z(i) = mean of v over the allowed keys of i |
| query | `scale` | queries x factor, after any query norm |
| query | `as_published` | rows of W_q (and its bias) x 1e-5, before any query norm |
| value | any | the head's own output: z x factor, per query head, right under grouped-query attention |

Sources: "One Head to Rule Them All" (NeurIPS 2025; cirteo/Oh-Defense scales W_q rows by 1e-5); Zhou et al., "On the
Role of Attention Heads in LLM Safety" (arXiv 2410.13708; ydyjya/SafetyHeadAttribution 6203a04: value masks multiply
the head's output). On a model with a query norm `as_published` is a different intervention from `limit`, because the
norm divides the factor out again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.axes import PROJECTIONS
from workbench.checking import Converted, plainly
from workbench.errors import MaskError
from workbench.models.attention import HeadEdit, edited_attention, even_attention, sites_set
from workbench.models.decoder import Decoder
from workbench.models.encode import Encoded
from workbench.models.offloaded import at_hand
from workbench.models.precision import double_kept
from workbench.models.walk import BasePass, call_layer

Form = Literal["limit", "as_published", "scale"]
Grain = Literal["query_head", "kv_group"]
Positions = Literal["all", "after_image", "last"]
PUBLISHED_FACTOR = 1e-5


@dataclass(frozen=True)
class Mask:
    """How heads are masked.

    Attributes:
        form: `"limit"` (canonical), `"as_published"` or `"scale"`; see the module's table.
        factor: No unit. 0.0 by default; 1e-5 for `as_published` when left at 0. 1.0 changes nothing, exactly.
        grain: `"query_head"`, or `"kv_group"`: all query heads that share one key/value head, masked together.
        positions: Token positions at which the mask acts: `"all"`; `"after_image"`, from the first position after
            the image on; `"last"`, from the last prompt position on.

    Raises:
        MaskError: An unknown word, a factor that is not a finite number, or a pair that has no meaning.

    Examples:
        >>> import workbench as wb
        >>> wb.Mask()
        Mask(form='limit', factor=0.0, grain='query_head', positions='all')
        >>> wb.Mask(form="as_published").factor
        1e-05
        >>> wb.Mask(form="scale", factor=1.0).changes_nothing
        True
    """

    form: Form = "limit"
    factor: float = 0.0
    grain: Grain = "query_head"
    positions: Positions = "all"

    def __post_init__(self) -> None:
        for name, kind in (("form", Form), ("grain", Grain), ("positions", Positions)):
            if getattr(self, name) not in get_args(kind):
                raise MaskError(
                    f"Mask {name} must be one of {', '.join(get_args(kind))}; got {plainly(getattr(self, name))}."
                )
        if not isinstance(self.factor, int | float) or isinstance(self.factor, bool) or not -1e6 < self.factor < 1e6:
            raise MaskError(
                f"Mask factor must be a finite number (0 removes, 1 changes nothing); got {plainly(self.factor)}."
            )
        if self.form == "limit" and self.factor != 0:
            raise MaskError(
                f"The limit form is the mask with factor 0, so factor={self.factor} has no place in it. "
                "Use Mask(form='scale', factor=…) for a partial mask."
            )
        if self.form == "as_published":
            if self.positions != "all":
                raise MaskError(
                    f"The published form scales weights, which act at all positions; got positions={self.positions!r}. "
                    "Use form='limit' or form='scale' for a mask at some positions."
                )
            if self.factor == 0:
                object.__setattr__(self, "factor", PUBLISHED_FACTOR)

    @property
    def changes_nothing(self) -> bool:
        """True for a factor of exactly 1: every deflection and KL is then exactly 0."""
        return self.factor == 1.0

    def row_heads(self, n_heads: int, n_kv_heads: int) -> list[tuple[int, ...]]:
        """The query heads each row of a layer masks: one a query head, or one group a key/value head."""
        if self.grain == "query_head":
            return [(head,) for head in range(n_heads)]
        group = n_heads // n_kv_heads
        return [tuple(range(kv * group, (kv + 1) * group)) for kv in range(n_kv_heads)]

    def start(self, encoded: Encoded) -> int:
        """First token position at which the mask acts on this prompt."""
        if self.positions == "all":
            return 0
        if self.positions == "last":
            return encoded.n_tokens - 1
        if encoded.image_span is None:
            raise MaskError(
                f"positions='after_image' needs an image, and prompt {encoded.prompt_id!r} has none. "
                "Leave such prompts out, or use positions='all'."
            )
        return encoded.image_span[1]

    def edit(
        self, projection: str, rows: Sequence[Sequence[int]], n_heads: int, start: int, device: torch.device
    ) -> HeadEdit:
        """The edit of one layer in which row r masks the query heads `rows[r]`.

        The query projection of `as_published` is not an edit of the attention but of its weights
        (`published_queries`).
        """
        if projection not in PROJECTIONS:
            raise MaskError(f"projection must be one of {', '.join(PROJECTIONS)}; got {projection!r}.")
        chosen = torch.zeros(len(rows), n_heads, dtype=torch.bool)
        for row, heads in enumerate(rows):
            for head in heads:
                if not 0 <= head < n_heads:
                    raise MaskError(f"Head {head} is not in 0..{n_heads - 1}, the query heads of this model.")
                chosen[row, head] = True
        chosen = chosen.to(device)
        if projection == "query" and self.form == "limit":
            return HeadEdit(query_off=chosen, start=start)
        factor = torch.ones(chosen.shape, dtype=torch.float64, device=device).masked_fill(chosen, self.factor)
        if projection == "query":
            return HeadEdit(query_factor=factor, start=start)
        return HeadEdit(output_factor=factor, start=start)

    def describe(self) -> dict[str, str | float]:
        """The mask as run attributes."""
        return {f"mask_{name}": getattr(self, name) for name in ("form", "factor", "grain", "positions")}


def as_mask(value: Any) -> Mask:
    """The mask that is meant: a Mask, or the name of a form.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(value, str) and value in get_args(Form):
        return Mask(form=value)  # type: ignore[arg-type]  # it is one of them
    if not isinstance(value, Mask):
        raise ValueError(f"must be a workbench.Mask, or one of its forms: {', '.join(get_args(Form))}")
    return value


SomeMask = Annotated[Mask, Converted(as_mask)] | None


def masked_z(
    model: Decoder, base: BasePass, layer: int, projection: str, mask: Mask
) -> Float[Tensor, "prompt pos head d_head"]:
    """z of every head of a layer as if that head alone were masked, at all positions.

    Heads do not see each other inside a layer, so one call gives the masked z of all of them.
    """
    seen, site = base.recordings[layer], model.sites[layer]
    n_heads = seen.query.shape[1]
    if projection == "value":
        return seen.z * mask.factor
    if mask.form == "limit":
        return even_attention(seen.value, seen.mask, seen.query.shape[2], n_heads)
    if mask.form == "as_published":
        with (
            published_queries(model, {layer: range(n_heads)}, mask.factor),
            sites_set([site], record=True, recording=None),
            double_kept(model.dtype),
        ):
            call_layer(model, layer, base.inputs[layer], base.arguments[layer])
            assert site.recording is not None
            return site.recording.z
    every = mask.edit("query", [range(n_heads)], n_heads, 0, seen.query.device)
    return edited_attention(model.attentions[layer], every, seen)


@contextmanager
def published_queries(model: Decoder, heads: Mapping[int, Sequence[int]], factor: float) -> Iterator[None]:
    """Scale rows of W_q (and its bias) of some heads, layer by layer, before any query norm: the published mask.

    Done on the projection's output, which is the same number and leaves the shared weights alone.
    """

    def shrink(scale: Tensor, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        queries = output[..., : len(scale)] * scale.to(output.device)
        return torch.cat([queries, output[..., len(scale) :]], -1)

    with model.lock, ExitStack() as stack:
        for layer, chosen in heads.items():
            module, width = model.query_weights(layer)
            scale = torch.ones(width, device=model.device, dtype=model.dtype)
            scale.view(-1, model.d_head)[list(chosen)] = factor
            stack.enter_context(module.register_forward_hook(partial(shrink, scale)))
        yield


def head_writes(
    model: Decoder, layer: int, delta: Float[Tensor, "prompt pos head d_head"], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "prompt row pos d_model"]:
    """What the changes `delta` of the heads in `rows[r]` add to the residual stream: delta · W_O, row by row."""
    index = torch.as_tensor(rows, device=delta.device)
    output = model.output(layer)
    if type(output) is nn.Linear and output.weight.is_floating_point():
        with at_hand(output):
            weight = output.weight.view(output.out_features, delta.shape[2], delta.shape[3])[:, index].to(delta.device)
        return torch.einsum("psrmk,drmk->prsd", delta[:, :, index], weight)
    # Quantised or wrapped projections have no plain weight to slice: send each row's change through the module.
    scattered = delta.new_zeros(len(rows), *delta.shape)
    for row, heads in enumerate(rows):
        scattered[row][:, :, list(heads)] = delta[:, :, list(heads)]
    flat = scattered.flatten(-2)
    return (output(flat) - output(torch.zeros_like(flat[:1]))).transpose(0, 1)
