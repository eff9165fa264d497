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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from workbench.axes import PROJECTIONS
from workbench.errors import MaskError
from workbench.models.attention import HeadEdit
from workbench.models.encode import Encoded

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
                raise MaskError(f"Mask {name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}.")
        if not isinstance(self.factor, int | float) or not -1e6 < self.factor < 1e6:
            raise MaskError(f"Mask factor must be a finite number (0 removes, 1 changes nothing); got {self.factor!r}.")
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
        (`workbench.models.walk.published_queries`).
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
