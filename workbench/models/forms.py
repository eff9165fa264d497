"""`Mask`: what masking a head means. Every result names form, site, grain, factor, positions and source.

| form | projection | what happens to the head |
|---|---|---|
| `limit` | query | attention becomes even over the keys it may see: z(i) = mean of v over the allowed keys of i |
| `scale` | query | queries x factor, after any query norm |
| `as_published` | query | rows of W_q (and its bias) x 1e-5, before any query norm |
| `limit`, `scale` | key | keys of the positions masked x factor (0 for limit), as this head sees them |
| `limit`, `scale`, `as_published` | value | the head's own output: z x factor; factors above 1 amplify |
| `scale` with `source` | value | z x a factor a channel |
| `interchange` | value | z becomes that of the prompt's matched twin, place by place |
| `mean` | value | z becomes the mean over the source's prompts, by kind of position (picture, text, last) |
| `resample` | value | z becomes that of another prompt, drawn, at a position of the same kind |
| `direction` | value | z - (1 - factor) (z.u) u + bias u, for the unit vector u along the head's `source` |
| `redirect` | query | `bias` is added to the scores of the `source`'s keys, before the softmax |

Sources: "One Head to Rule Them All" (NeurIPS 2025; cirteo/Oh-Defense scales W_q rows by 1e-5); Zhou et al., "On the
Role of Attention Heads in LLM Safety" (arXiv 2410.13708; ydyjya/SafetyHeadAttribution 6203a04: value masks multiply
the head's output); "How Alignment Routes" (arXiv 2604.04385; gregfrank/how-alignment-routes: interchange of z, there
at positions 0 to the shorter length without alignment); ASGuard (arXiv 2509.25843; factors a channel of z); Gaze Heads
(arXiv 2606.14703; a bias on the scores of a region's keys). On a model with a query norm `as_published` is a
different intervention from `limit`, because the norm divides the factor out again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args

import torch

from workbench.axes import MASKABLE
from workbench.checking import Converted, plainly
from workbench.errors import MaskError
from workbench.models.attention import HeadEdit
from workbench.models.encode import Encoded
from workbench.models.sources import OF_THE_CALL, Source, Vectors, chosen_keys, described, other_prompts, vectors

Form = Literal["limit", "as_published", "scale", "interchange", "mean", "resample", "direction", "redirect"]
Grain = Literal["query_head", "kv_group"]
Positions = Literal["all", "after_image", "last", "image"]
Phase = Literal["reading", "decoding", "both"]
PUBLISHED_FACTOR = 1e-5
# What each form masks, in the order of `MASKABLE`; without `key`, what a sweep masks when nothing is asked for.
PROJECTIONS_OF: dict[str, tuple[str, ...]] = {
    "limit": MASKABLE,
    "scale": MASKABLE,
    "as_published": ("query", "value"),
    "redirect": ("query",),
    **dict.fromkeys(("interchange", "mean", "resample", "direction"), ("value",)),
}
FROM_PROMPTS = ("interchange", "mean", "resample")  # forms that put in what other prompts gave


@dataclass(frozen=True, repr=False)
class Mask:
    """How heads are masked.

    Attributes:
        form: `"limit"` (canonical), `"as_published"`, `"scale"`, `"interchange"`, `"mean"`, `"resample"`,
            `"direction"` or `"redirect"`; see the module's table.
        factor: No unit. 0.0 by default; 1e-5 for `as_published` when left at 0. 1.0 changes nothing, exactly; more
            amplifies.
        grain: `"query_head"`, or `"kv_group"`: all query heads that share one key/value head, masked together.
        positions: Token positions at which the mask acts: `"all"`; `"after_image"`, from the first position after
            the image on; `"image"`, the image's alone; `"last"`, from the last prompt position on. Of the key
            projection, the positions whose keys are masked; positions before the first of them are left as they are.
        phase: When it acts: while the prompt is `"reading"`, while a reply is `"decoding"`, or `"both"`, which is the
            default but for `interchange`: a twin's reply has no counterpart, so that form acts while reading.
        source: What is put in, where the form needs it. `interchange`: prompts among which the twin is found by
            `pair_id`, or the twin itself; by default the prompts the mask is used on. `mean`, `resample`: prompts, or
            what `load_prompts` takes; by default the prompts the mask is used on. `direction`, and `scale` by channel:
            numbers `[layer, head, d_head]`. `redirect`: `"image"` (default), `"text"`, or a box of the picture (left,
            top, right, bottom) in shares of its size.
        bias: What `direction` adds along its unit vector, in the unit of z; what `redirect` adds to scores, in nats.
        seed: Of what `resample` draws.

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
        >>> wb.Mask(form="interchange", positions="last").projections
        ('value',)
    """

    form: Form = "limit"
    factor: float = 0.0
    grain: Grain = "query_head"
    positions: Positions = "all"
    phase: Phase | None = None
    source: Any = None  # what it is made of once it is here: `Source`
    bias: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.phase is None:
            object.__setattr__(self, "phase", "reading" if self.form == "interchange" else "both")
        for name, kind in (("form", Form), ("grain", Grain), ("positions", Positions), ("phase", Phase)):
            if getattr(self, name) not in get_args(kind):
                raise MaskError(
                    f"Mask {name} must be one of {', '.join(get_args(kind))}; got {plainly(getattr(self, name))}."
                )
        for name in ("factor", "bias"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not -1e6 < value < 1e6:
                raise MaskError(
                    f"Mask {name} must be a finite number (a factor of 0 removes, 1 changes nothing); got "
                    f"{plainly(value)}."
                )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise MaskError(f"Mask seed must be a whole number from 0; got {plainly(self.seed)}.")
        self._check_pairs()
        object.__setattr__(self, "source", self._settled_source())
        if self.form == "as_published" and self.factor == 0:
            object.__setattr__(self, "factor", PUBLISHED_FACTOR)

    def _check_pairs(self) -> None:
        """Refuse what has no meaning together."""
        if self.form == "limit" and self.factor != 0:
            raise MaskError(
                f"The limit form is the mask with factor 0, so factor={self.factor} has no place in it. "
                "Use Mask(form='scale', factor=…) for a partial mask."
            )
        if self.form in (*FROM_PROMPTS, "redirect") and self.factor != 0:
            raise MaskError(f"The form {self.form!r} has no factor; got {self.factor}.")
        if self.form == "as_published" and (self.positions != "all" or self.phase != "both"):
            raise MaskError(
                f"The published form scales weights, which act at all positions and at all times; got "
                f"positions={self.positions!r}, phase={self.phase!r}. "
                "Use form='limit' or form='scale' for a mask at some positions."
            )
        if self.bias and self.form not in ("direction", "redirect"):
            raise MaskError(f"bias belongs to the forms direction and redirect; got bias={self.bias} with {self.form}.")
        if self.form == "redirect" and not self.bias:
            raise MaskError(
                "redirect needs bias=…: what is added to scores of the chosen keys; above 0 = looked at more."
            )
        if self.seed and self.form != "resample":
            raise MaskError(f"seed belongs to the form resample, which draws; got seed={self.seed} with {self.form}.")
        if self.form == "interchange" and self.phase != "reading":
            raise MaskError(
                "interchange acts while the prompt is read, since a reply's tokens have no counterpart in the twin's "
                f"prompt. Leave phase={self.phase!r} out."
            )
        if self.positions == "image" and self.phase == "decoding":
            raise MaskError(
                "positions='image' lie in the prompt and phase='decoding' is after it, so no position is left."
            )

    def _settled_source(self) -> Source:
        if self.form in FROM_PROMPTS:
            return self.source if isinstance(self.source, Vectors) else other_prompts(self.source)
        if self.form == "redirect":
            return chosen_keys("image" if self.source is None else self.source)
        if self.form == "direction" or (self.form == "scale" and self.source is not None):
            if self.form == "scale" and self.factor:
                raise MaskError("scale takes one factor, or as source a factor for each channel, not both.")
            return vectors(self.source)
        if self.source is not None:
            raise MaskError(f"The form {self.form!r} takes nothing from a source; got {plainly(self.source)}.")
        return None

    def __repr__(self) -> str:
        usual = {"phase": "reading" if self.form == "interchange" else "both", "source": None, "bias": 0.0, "seed": 0}
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return f"Mask({', '.join(f'{k}={v!r}' for k, v in said.items() if k not in usual or v != usual[k])})"

    @property
    def projections(self) -> tuple[str, ...]:
        """What a sweep masks where nothing else is asked for."""
        return tuple(p for p in self.able if p != "key")

    @property
    def able(self) -> tuple[str, ...]:
        """Every projection that it can mask."""
        return ("value",) if self.channels else PROJECTIONS_OF[self.form]

    @property
    def channels(self) -> bool:
        """Whether z is scaled channel by channel."""
        return self.form == "scale" and self.source is not None

    @property
    def changes_nothing(self) -> bool:
        """True for a factor of exactly 1: every deflection and KL is then exactly 0."""
        return self.factor == 1.0 and self.bias == 0.0

    def check(self, projection: str) -> None:
        """MaskError for a projection that this form does not mask."""
        if projection not in MASKABLE:
            raise MaskError(f"projection must be one of {', '.join(MASKABLE)}; got {projection!r}.")
        able = self.able
        if projection not in able:
            others = ", ".join(f for f, of in PROJECTIONS_OF.items() if projection in of)
            raise MaskError(
                f"The form {self.form!r}{' by channel' if self.channels else ''} masks the {' and '.join(able)} "
                f"projection, not {projection!r}: give projection={able[0]!r} (projections=({able[0]!r},) in a sweep). "
                f"Forms that mask {projection!r}: {others}."
            )

    def row_heads(self, n_heads: int, n_kv_heads: int) -> list[tuple[int, ...]]:
        """The query heads each row of a layer masks: one a query head, or one group a key/value head."""
        if self.grain == "query_head":
            return [(head,) for head in range(n_heads)]
        group = n_heads // n_kv_heads
        return [tuple(range(kv * group, (kv + 1) * group)) for kv in range(n_kv_heads)]

    def start(self, encoded: Encoded) -> int:
        """First token position at which the mask acts on this prompt."""
        if self.phase == "decoding":
            return encoded.n_tokens
        return self.first(encoded)

    def first(self, encoded: Encoded) -> int:
        """First of the token positions that are masked, whenever that is."""
        if self.positions == "all":
            return 0
        if self.positions == "last":
            return encoded.n_tokens - 1
        if encoded.image_span is None:
            raise MaskError(
                f"positions={self.positions!r} needs an image, and prompt {encoded.prompt_id!r} has none. "
                "Leave such prompts out, or use positions='all'."
            )
        return encoded.image_span[self.positions == "after_image"]

    def stop(self, encoded: Encoded, projection: str = "") -> int | None:
        """One past the last position at which the mask acts on this prompt; None for all that follow."""
        # A masked key is masked for whoever looks at it later.
        if self.positions == "image" and projection != "key" and encoded.image_span is not None:
            return encoded.image_span[1]
        return encoded.n_tokens if self.phase == "reading" else None

    def edit(
        self, projection: str, rows: Sequence[Sequence[int]], n_heads: int, start: int, device: torch.device
    ) -> HeadEdit:
        """The edit of one layer in which row r masks the query heads `rows[r]`.

        The query projection of `as_published` is not an edit of the attention but of its weights
        (`published_queries`). Forms that put something in say only which heads they act on; what they put there is
        added by `workbench.models.bound`.
        """
        self.check(projection)
        chosen = torch.zeros(len(rows), n_heads, dtype=torch.bool)
        for row, heads in enumerate(rows):
            for head in heads:
                if not 0 <= head < n_heads:
                    raise MaskError(f"Head {head} is not in 0..{n_heads - 1}, the query heads of this model.")
                chosen[row, head] = True
        chosen = chosen.to(device)
        if self.puts_in(projection):
            return HeadEdit(chosen=chosen, start=start)
        if projection == "query" and self.form == "limit":
            return HeadEdit(query_off=chosen, start=start)
        factor = torch.ones(chosen.shape, dtype=torch.float64, device=device).masked_fill(chosen, self.factor)
        if projection == "query":
            return HeadEdit(query_factor=factor, start=start)
        return HeadEdit(output_factor=factor, start=start)

    def puts_in(self, projection: str) -> bool:
        """Whether z is made anew from more than the pass itself says; see `workbench.models.bound`."""
        return projection == "key" or self.channels or self.form in (*FROM_PROMPTS, "direction", "redirect")

    def describe(self) -> dict[str, str | float]:
        """The mask as run attributes; what has a usual value only where it is another."""
        names = ("form", "factor", "grain", "positions")
        said: dict[str, Any] = {f"mask_{name}": getattr(self, name) for name in names}
        if self.phase != ("reading" if self.form == "interchange" else "both"):
            said["mask_phase"] = self.phase
        if self.form in FROM_PROMPTS or self.source is not None:
            said["mask_source"] = OF_THE_CALL if self.source is None else described(self.source)
        if self.bias:
            said["mask_bias"] = self.bias
        if self.form == "resample":
            said["mask_seed"] = self.seed
        return said


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
