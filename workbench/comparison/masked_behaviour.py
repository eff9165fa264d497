"""What masking heads does to behaviour: attacks, benign requests and questions, beside matched random controls."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.axes import Head, head_names, head_pairs
from workbench.criteria.controls import control_heads
from workbench.criteria.registry import get_criterion
from workbench.detectors.calibration import unsafe_array
from workbench.errors import CriterionError, DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt
from workbench.replies.batches import generate_batch
from workbench.replies.judges import Judge, judge_replies, unsafe_families, verdict_shares

SIZES = (1, 3, 5)
QUESTION_FAMILY = "question"
OUTCOME_COLUMNS = ("n_heads", "masked", "draw", "heads", "group", "n", "complied", "low", "high", "refused", "other")


class MaskedReplies:
    """A model's replies to some prompts with sets of heads masked, and verdicts on them; each set is generated once.

    Args:
        model: The model that answers.
        prompts: What it is asked.
        mask: How heads are masked, in the prompt and while decoding.
        judge: `"exact"` needs prompts with expected replies; other names and functions: `workbench.replies.judges`.
        max_new_tokens: Length of a reply at most.
        plain: The replies without a mask, where they are known.
    """

    def __init__(
        self,
        model: HookedLVLM,
        prompts: Sequence[Prompt],
        *,
        mask: Mask | None = None,
        judge: str | Judge = "exact",
        max_new_tokens: int = 16,
        plain: Sequence[str] | None = None,
    ) -> None:
        self.model, self.prompts, self.mask = model, prompts, mask or Mask()
        self.judge, self.max_new_tokens = judge, max_new_tokens
        self._replies: dict[tuple[frozenset[Head], str, Mask], Sequence[str]] = {}
        if plain is not None:
            self._replies[frozenset(), "", self.mask] = plain

    def verdicts(
        self,
        heads: Sequence[Head] = (),
        projection: str = "query",
        *,
        judge: str | Judge | None = None,
        mask: Mask | None = None,
    ) -> np.ndarray:
        """A judge's verdicts on the replies with some heads masked, [prompt]; judge and mask as given by default."""
        key = (frozenset(heads), projection if heads else "", (mask if heads else None) or self.mask)
        if key not in self._replies:
            self._replies[key] = generate_batch(
                self.model,
                self.prompts,
                heads=sorted(key[0]),
                projection=projection,
                mask=key[2] if heads else None,
                max_new_tokens=self.max_new_tokens,
            )
        return judge_replies(self.prompts, self._replies[key], judge or self.judge)


def attack_success(
    model: HookedLVLM,
    prompts: Sequence[Prompt],
    heads: Sequence[Head],
    *,
    sizes: Sequence[int] = SIZES,
    projection: str = "query",
    mask: Mask | None = None,
    controls: int = 5,
    judge: str | Judge = "exact",
    max_new_tokens: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Behaviour with the first 1, 3, 5 of some heads masked during generation, and with as many random ones.

    Args:
        model: The model that answers.
        prompts: Labelled; unsafe ones for attack success, safe ones for what else breaks.
        heads: (layer, head) pairs, the first the most important.
        sizes: How many of them to mask; sizes over the number of heads are left out.
        projection: What of them is masked, in the prompt and while decoding.
        mask: How.
        controls: Draws of control heads for each size: for every masked head another one of its layer, never one of
            `heads`; any others where a layer has none left (`masked` then says `random`).
        judge: `"exact"` needs prompts with expected replies; other names and functions: `workbench.replies.judges`.
        max_new_tokens: Length of a reply at most.
        seed: Of the draws.

    Returns:
        One row a masked set × group of prompts: n_heads; `masked`: nothing, chosen, layer_matched or random; `draw` of
        the control; `heads`, written L3H1 L0H2; `group`: `unsafe` (all of them), each unsafe family, `benign` (safe
        requests) and `question` (safe prompts of that family); n; `complied` (0 to 1; on unsafe prompts the attack
        success rate, on the others the accuracy), with its exact 95 % interval `low` and `high`; `refused` and `other`,
        0 to 1.
    """
    heads = [(int(layer), int(head)) for layer, head in heads]
    if len(set(heads)) < len(heads) or not heads:
        raise DetectorError(f"heads must name one head or more, each once; got {head_names(heads) or 'none'}.")
    kept = [size for size in sizes if 1 <= size <= len(heads)]
    if not kept:
        raise DetectorError(f"None of the sizes {tuple(sizes)} fits {len(heads)} heads.")
    sets: list[tuple[str, int, Sequence[Head]]] = [("nothing", 0, [])]
    for size in kept:
        sets.append(("chosen", 0, heads[:size]))
        for draw in range(controls):
            kind, drawn = draw_controls(model, heads, size, seed=seed + draw)
            sets.append((kind, draw, drawn))
    replies = MaskedReplies(model, prompts, mask=mask, judge=judge, max_new_tokens=max_new_tokens)
    tables = [
        outcome_groups(prompts, replies.verdicts(chosen, projection)).assign(
            n_heads=len(chosen), masked=masked, draw=draw, heads=head_names(chosen)
        )
        for masked, draw, chosen in sets
    ]
    return pd.concat(tables, ignore_index=True)[list(OUTCOME_COLUMNS)]


def outcome_groups(prompts: Sequence[Prompt], verdicts: np.ndarray) -> pd.DataFrame:
    """Verdicts counted by group of prompts; groups without prompts have no row."""
    unsafe = unsafe_array(prompts)
    question = np.array([p.family == QUESTION_FAMILY for p in prompts], dtype=bool)
    groups = {"unsafe": unsafe, **unsafe_families(prompts)}
    groups |= {"benign": ~unsafe & ~question, QUESTION_FAMILY: ~unsafe & question}
    rows = [{"group": name, **verdict_shares(verdicts[of])} for name, of in groups.items() if of.any()]
    return pd.DataFrame(rows).rename(columns={"rate": "complied"})


def draw_controls(model: HookedLVLM, heads: Sequence[Head], size: int, *, seed: int) -> tuple[str, list[Head]]:
    """As many control heads as the first `size` of `heads`, none of them among `heads`: the kind of control, and the
    draw.

    Raises:
        DetectorError: If too few other heads are left.
    """
    every = [(layer, head) for layer in model.masked_layers for head in range(model.n_heads)]
    rest = [head for head in every if head not in set(heads)]
    # The controls of the criteria, which go by layer alone here; `cells.head(size)` are the anchors.
    cells = pd.DataFrame([*heads[:size], *rest], columns=["layer", "head"]).assign(unsafe=0.0, safe=0.0)
    for kind in ("layer_matched", "random"):
        try:
            drawn = control_heads(cells, get_criterion("deflection"), kind, k=size, seed=seed, pick=cells.head)
        except CriterionError:
            continue
        return kind, head_pairs(drawn)
    raise DetectorError(
        f"Only {len(rest)} heads are left beside the {len(heads)} chosen ones: too few for {size} controls."
    )
