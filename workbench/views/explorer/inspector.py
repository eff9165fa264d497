"""What the explorer asks the model about one prompt and some heads; a second look at the same costs nothing."""

import dataclasses
import io
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from PIL import Image

from workbench.axes import Head
from workbench.models.attention import attention_pattern
from workbench.models.bound import with_source
from workbench.models.masks import Mask
from workbench.plain import plain
from workbench.prompts.pictures import picture_of_bytes
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.runs.effects import measure
from workbench.runs.origin import check_model, mask_of
from workbench.views.explorer.decoding import Decoded

if TYPE_CHECKING:
    from workbench.models.hooked import HookedLVLM
    from workbench.models.walk import BasePass

REPLY_TOKENS = 48
LONGEST_PATTERN = 2048  # positions of which a whole pattern is shown
_SEEN = 5e-4  # a probability that still shows with three digits
_KEPT = 2  # base passes, which hold every layer's queries and keys
_REPLIES = 8  # that can be stepped through
_SHOWN_PIXELS = 512
_GREY = (127, 127, 127)


class Inspector:
    """A model under the mask of a run, and the prompts of that run.

    Attributes:
        prompts: By id; empty where the run's prompts are not at hand.
        replies: The last that were decoded, by a name that no prompt has. All that is asked about a prompt by its id
            can be asked about these.
    """

    def __init__(self, model: "HookedLVLM", run: xr.Dataset, prompts: Mapping[str, Prompt]) -> None:
        check_model(run, model)
        self.model, self.prompts = model, prompts
        self.mask = self.taking(mask_of(run))
        self.replies: OrderedDict[str, Decoded] = OrderedDict()
        self._passes: OrderedDict[str, BasePass] = OrderedDict()
        self._states: dict[tuple[Any, ...], torch.Tensor] = {}
        self._replied = 0

    def __repr__(self) -> str:
        return f"Inspector({self.model.name!r}, {len(self.prompts)} prompts)"

    def knows(self, name: str) -> bool:
        """Whether there is such a prompt, or such a reply."""
        return name in self.prompts or name in self.replies

    def taking(self, mask: Mask) -> Mask:
        """The mask, taking z from the run's prompts where it takes it from prompts and names none."""
        return with_source(self.model, mask, PromptSet(self.prompts.values()))

    def base(self, prompt_id: str) -> "BasePass":
        """The unmasked pass of a prompt, or the pass of a reply as it was decoded; the last few are kept."""
        if prompt_id not in self._passes:
            reply = self.replies.get(prompt_id)
            self._passes[prompt_id] = reply.look(self.model) if reply else self.model.base(self.prompts[prompt_id])
            while len(self._passes) > _KEPT:
                self._passes.popitem(last=False)
        self._passes.move_to_end(prompt_id)
        return self._passes[prompt_id]

    def described(self, prompt_id: str) -> tuple[dict[str, Any], bytes]:
        """Tokens, which of them are the picture's, where each lies in it, and the picture as a file's bytes.

        Boxes are (left, top, right, bottom) in shares of the picture's size, None for separators; all of it None where
        the family's layout of this picture is not known.
        """
        prompt = self.replies[prompt_id].prompt if prompt_id in self.replies else self.prompts[prompt_id]
        encoded = self.base(prompt_id).encoded[0]
        boxes = None
        if encoded.patch_boxes is not None:
            boxes = [
                None if np.isnan(box).any() else box.round(5).tolist() for box in encoded.patch_boxes.double().numpy()
            ]
        image, data = prompt.image, b""
        if image is not None:
            shown: Image.Image = image.convert("RGB")
            shown.thumbnail((_SHOWN_PIXELS, _SHOWN_PIXELS))
            buffer = io.BytesIO()
            shown.save(buffer, format="PNG")
            data = buffer.getvalue()
        about = {
            "text": plain(prompt.text, keep="\n\t"),
            "tokens": [plain(readable(token)) for token in encoded.tokens],
            "image": encoded.image_positions.nonzero()[:, 0].tolist(),
            "boxes": boxes,
            "size": list(image.size) if image is not None else None,
            "type": "image/png",
        }
        return about, data

    def rows(self, prompt_id: str, layer: int, position: int | None = None) -> np.ndarray:
        """Attention of one position (the last by default) over all, [head, key]; a head of the run is a row.

        Heads that were masked as a group (grain `kv_group`) are shown by their mean. Zero in a layer without maskable
        heads.
        """
        base = self.base(prompt_id)
        groups = self.mask.row_heads(self.model.n_heads, self.model.n_kv_heads)
        if layer not in base.recordings:
            return np.zeros((len(groups), base.n_pos), dtype=np.float32)
        seen = base.recordings[layer]
        with torch.no_grad():
            if position is None:
                weights = attention_pattern(seen.at_last())[0, :, 0]
            else:
                weights = attention_pattern(seen)[0, :, position]
        found = weights.float().cpu().numpy()
        return np.stack([found[list(members)].mean(0) for members in groups])

    def pattern(self, prompt_id: str, head: Head) -> np.ndarray:
        """The head's whole attention pattern, [query, key]; empty where the prompt is too long to show it."""
        base = self.base(prompt_id)
        if base.n_pos > LONGEST_PATTERN or head[0] not in base.recordings:
            return np.zeros((0, 0), dtype=np.float32)
        members = self.mask.row_heads(self.model.n_heads, self.model.n_kv_heads)[head[1]]
        with torch.no_grad():
            weights = attention_pattern(base.recordings[head[0]])[0, list(members)].mean(0)
        return weights.float().cpu().numpy()

    def most_on(
        self, prompt_id: str, keys: Sequence[int], position: int | None, *, k: int = 8
    ) -> list[tuple[Head, float]]:
        """The heads that give most attention to these positions together, most first, with the share."""
        sums = np.stack(
            [self.rows(prompt_id, layer, position)[:, list(keys)].sum(1) for layer in range(self.model.n_layers)]
        )
        order = np.argsort(-sums, axis=None, kind="stable")[:k]
        return [(divmod(int(i), sums.shape[1]), float(sums.flat[i])) for i in order]

    def next_tokens(
        self, prompt: Prompt, heads: Sequence[Head], projection: str, *, mask: Mask | None = None, k: int = 6
    ) -> tuple[list[tuple[str, float, float]], dict[str, float]]:
        """(token, probability, probability with the heads masked) of the likeliest of either, and what changed.

        What changed is said in the criteria's own numbers: Ships (KL, nats) and the deflection angle (degrees).
        """
        base, masked = (self._state(prompt, of, projection, mask or self.mask) for of in ((), tuple(heads)))
        return self._compared(base, masked, k)

    def _compared(
        self, base: torch.Tensor, masked: torch.Tensor, k: int
    ) -> tuple[list[tuple[str, float, float]], dict[str, float]]:
        """What follows a final state, and a masked one: see `next_tokens`."""
        logits = [self.model.unembed(state) for state in (base, masked)]
        here, there = (torch.softmax(part.double(), dim=-1).cpu().numpy() for part in logits)
        top = list(dict.fromkeys([*np.argsort(-here)[:k].tolist(), *np.argsort(-there)[:k].tolist()]))
        names = self.model.tokenizer.convert_ids_to_tokens(top)
        rows = [(plain(readable(str(n))), float(here[i]), float(there[i])) for i, n in zip(top, names, strict=True)]
        found = measure(self.model, base[None], logits[0][None], masked[None, None])
        changed = {name: float(found[variable]) for name, variable in (("deflection", "deflection"), ("ships", "kl"))}
        return [row for place, row in enumerate(rows) if place < 2 or max(row[1:]) >= _SEEN], changed

    def steps(self, name: str) -> dict[str, Any]:
        """A reply token by token: `first` (the position that chose the first), `tokens`, and what followed each place.

        `next` is what `next_tokens` says at each step, of the reply so far, with the heads masked and without;
        `measures` is what changed.
        """
        reply = self.replies[name]
        base = reply.states(self.model, masked=False)
        masked = reply.states(self.model, masked=True) if reply.heads else base
        said = [self._compared(*states, k=4) for states in zip(base, masked, strict=True)]
        return {
            "reply": name,
            "first": reply.first,
            "tokens": [plain(readable(token)) for token in reply.tokens],
            "next": [rows for rows, _ in said],
            "measures": [changed for _, changed in said] if reply.heads else None,
        }

    def _state(self, prompt: Prompt, heads: tuple[Head, ...], projection: str, mask: Mask) -> torch.Tensor:
        key = (prompt.content_hash(), heads, projection if heads else "", mask if heads else None)
        if key not in self._states:
            options: dict[str, Any] = {"heads": list(heads), "projection": projection, "mask": mask} if heads else {}
            self._states[key] = self.model.state(prompt, **options)
        return self._states[key]

    def reply(
        self,
        prompt: Prompt,
        heads: Sequence[Head],
        projection: str,
        *,
        mask: Mask,
        masked: bool,
        say: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> str:
        """Decode a greedy reply, handing on each piece of text as it comes; ends early once `stop` says so.

        Returns:
            The name it is kept by, for `steps` and for all that is asked about prompts.
        """
        from transformers import StoppingCriteria, StoppingCriteriaList

        from workbench.replies.guarded import Pieces

        class Asked(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
                return torch.full((len(input_ids),), stop(), device=input_ids.device)

        about: dict[str, Any] = {"heads": list(heads), "projection": projection, "mask": mask}
        out = self.model.generated(
            prompt,
            max_new_tokens=REPLY_TOKENS,
            streamer=Pieces(self.model, lambda text: say(plain(text, keep="\n\t"))),
            stopping_criteria=StoppingCriteriaList([Asked()]),
            **(about if masked else {}),
        )
        ids = out.sequences[0, out.n_prompt_tokens :].cpu()
        self._replied += 1
        name = f"\0reply {self._replied}"
        self.replies[name] = Decoded.of(self.model, prompt, ids, masked=masked, **about)
        while len(self.replies) > _REPLIES:
            self.replies.popitem(last=False)
        return name


def altered(
    prompt: Prompt, text: str, picture: str, *, box: Sequence[float] | None = None, files: Sequence[bytes] = ()
) -> Prompt:
    """The prompt with another text (where there is one) and another picture.

    Args:
        prompt: To begin with.
        text: In place of its own; empty to keep that.
        picture: `"keep"`, `"blank"` (all of it grey), `"box"` (the box grey), `"none"`, or `"own"` (the file given).
        box: (left, top, right, bottom) in shares of the picture's size.
        files: The bytes of a picture.
    """
    image: Any = prompt.image
    if picture == "none":
        image = None
    elif picture == "own" and files:
        image = picture_of_bytes(files[0], "the picture given")
    elif picture in ("blank", "box") and image is not None:
        width, height = image.size
        left, top, right, bottom = (0, 0, 1, 1) if picture == "blank" or box is None else box
        image = image.convert("RGB")
        image.paste(_GREY, (round(left * width), round(top * height), round(right * width), round(bottom * height)))
    return dataclasses.replace(prompt, text=text or prompt.text, image=image)


def readable(token: str) -> str:
    """A vocabulary entry as a person reads it: the marks that stand for a space or a new line are written out."""
    shown = token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "⏎").replace("\n", "⏎").strip(" ")
    return shown or "␣"
