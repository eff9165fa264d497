"""What the explorer asks the model about one prompt and one head; answers are kept, so a second look costs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from workbench.prompts.prompt import Prompt
from workbench.runs.origin import check_model, mask_of
from workbench.views.charts import Head

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM

_CHEAP_PARAMETERS = 5e7  # below this a reply takes well under a second on one core, so it need not be asked for
_REPLY_TOKENS = 32
_SEEN = 5e-4  # a probability that still shows with three digits


@dataclass(frozen=True)
class Attended:
    """Where one head looks from the last prompt position.

    Attributes:
        patches: Attention on each image patch, [rows, cols]; None without an image or without a plain grid.
        words: (token, attention) for every position that is not part of the image.
        image_share: Attention on the whole image; NaN without one.
    """

    patches: np.ndarray | None
    words: list[tuple[str, float]]
    image_share: float


class Inspector:
    """A model under the mask of a run, and the prompts of that run.

    Attributes:
        prompts: By id; empty where the run's prompts are not at hand.
        cheap: Whether a reply is so quick that it may be generated on every selection.
    """

    def __init__(self, model: "HookedLVLM", run: xr.Dataset, prompts: Mapping[str, Prompt]) -> None:
        check_model(run, model)
        self._model, self.prompts = model, prompts
        self._mask = mask_of(run)
        self.cheap = 12 * model.n_layers * model.d_model**2 < _CHEAP_PARAMETERS
        self._attention: dict[str, np.ndarray] = {}
        self._next: dict[tuple[str, Head | None, str], np.ndarray] = {}
        self._replies: dict[tuple[str, Head | None, str], str] = {}

    def __repr__(self) -> str:
        return f"Inspector({self._model.name!r}, {len(self.prompts)} prompts)"

    def attended(self, prompt_id: str, head: Head) -> Attended:
        """Where a head looks; a group of heads (grain `kv_group`) is shown by its mean."""
        encoded = self._model.encode(self.prompts[prompt_id])
        if prompt_id not in self._attention:
            self._attention[prompt_id] = self._model.attention(self.prompts[prompt_id]).float().numpy()
        members = self._mask.row_heads(self._model.n_heads, self._model.n_kv_heads)[head[1]]
        weights = self._attention[prompt_id][head[0], list(members)].mean(axis=0)
        picture = np.asarray(encoded.image_positions, dtype=bool)
        patches = None
        if encoded.patch_grid and picture.sum() == np.prod(encoded.patch_grid):
            patches = weights[picture].reshape(encoded.patch_grid)
        words = [
            (readable(t), float(w)) for t, w, inside in zip(encoded.tokens, weights, picture, strict=True) if not inside
        ]
        return Attended(patches, words, float(weights[picture].sum()) if picture.any() else float("nan"))

    def next_tokens(self, prompt_id: str, head: Head, projection: str, *, k: int = 5) -> list[tuple[str, float, float]]:
        """(token, probability, probability without the head): the `k` likeliest of either that have any to speak of."""
        base, masked = (self._probabilities(prompt_id, h, projection) for h in (None, head))
        top = dict.fromkeys([*np.argsort(-base)[:k].tolist(), *np.argsort(-masked)[:k].tolist()])
        names = self._model.tokenizer.convert_ids_to_tokens(list(top))
        rows = [(readable(str(n)), float(base[i]), float(masked[i])) for i, n in zip(top, names, strict=True)]
        return [row for place, row in enumerate(rows) if place < 2 or max(row[1:]) >= _SEEN]

    def _probabilities(self, prompt_id: str, head: Head | None, projection: str) -> np.ndarray:
        key = (prompt_id, head, projection if head else "")
        if key not in self._next:
            logits = self._model.logits(self.prompts[prompt_id], **self._masked(head, projection))
            self._next[key] = torch.softmax(logits.double(), dim=-1).cpu().numpy()
        return self._next[key]

    def _masked(self, head: Head | None, projection: str) -> dict[str, Any]:
        """What masks one head in a call of the model, as the run did; nothing without a head."""
        return {"heads": [head], "projection": projection, "mask": self._mask} if head else {}

    def has_replies(self, prompt_id: str, head: Head, projection: str) -> bool:
        """Whether both replies are already known."""
        return (prompt_id, None, "") in self._replies and (prompt_id, head, projection) in self._replies

    def replies(self, prompt_id: str, head: Head, projection: str) -> tuple[str, str]:
        """The greedy reply as it is, and with the head masked while reading and writing."""
        return self._reply(prompt_id, None, ""), self._reply(prompt_id, head, projection)

    def _reply(self, prompt_id: str, head: Head | None, projection: str) -> str:
        key = (prompt_id, head, projection)
        if key not in self._replies:
            masked = self._masked(head, projection)
            self._replies[key] = self._model.generate(self.prompts[prompt_id], max_new_tokens=_REPLY_TOKENS, **masked)
        return self._replies[key]


def readable(token: str) -> str:
    """A vocabulary entry as a person reads it: the marks that stand for a space or a new line are written out."""
    shown = token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "⏎").replace("\n", "⏎").strip(" ")
    return shown or "␣"
