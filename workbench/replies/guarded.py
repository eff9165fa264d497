"""Guarded generation of one reply: a detector looks first, and what it flags is refused; or a guard acts by itself.

The released code of the recipe takes a prompt for safe when its detection fails; here that is an error, or a refusal
(`on_error`).
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from transformers import TextStreamer

from workbench.axes import MASKABLE, Head, as_heads
from workbench.checking import Converted, OneOf, Whole, checked
from workbench.detectors import load_detector
from workbench.detectors.detector import Detector
from workbench.detectors.stored import DESCRIPTION
from workbench.errors import ArgumentError, DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import as_model
from workbench.models.masks import SomeMask
from workbench.prompts.prompt import Prompt
from workbench.replies.batches import ForcedOpening, token_ids
from workbench.replies.guards import GUARDS, Guard, RefusalRecipe, make_guard


class Reply(str):
    """A reply, and what the guard made of its prompt.

    Attributes:
        flagged: Whether the guard took the prompt for unsafe; None when its detection failed.
        score: The guard's; NaN when its detection failed.
        threshold: The guard's; NaN when its detection failed.
        error: What went wrong in detection; empty when nothing did.
        unguarded: What the model says without the guard; None unless asked for.
    """

    flagged: bool | None
    score: float
    threshold: float
    error: str
    unguarded: str | None


def _as_prompt(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(id="asked", text=prompt)
    if not isinstance(prompt, Prompt):
        raise ValueError("must be a Prompt or its text")
    return prompt


def _as_guard(guard: Any) -> Detector | Guard | None:
    if isinstance(guard, str) and guard in GUARDS:
        guard = make_guard(guard)
    if isinstance(guard, Guard):
        if guard.by_detector:
            raise DetectorError(f"The guard {guard.name!r} acts on what a detector flags: give guard=detector.")
        return guard
    if isinstance(guard, str | Path) and (Path(guard) / DESCRIPTION).is_file():
        return load_detector(guard)
    if guard is not None and not isinstance(guard, Detector):
        raise DetectorError(
            f"guard must be a fitted detector, the folder of a stored one, or a guard that needs none "
            f"({', '.join(n for n, record in GUARDS.items() if not record.kind.by_detector)}); got a "
            f"{type(guard).__name__}."
        )
    return guard


@checked
def generate(
    model: Annotated[HookedLVLM, Converted(as_model)],
    prompt: Annotated[Prompt, Converted(_as_prompt)],
    *,
    max_new_tokens: Annotated[int, Whole(1, 10**6)] = 32,
    heads: Annotated[Sequence[Head], Converted(as_heads)] = (),
    projection: Annotated[str, OneOf(MASKABLE)] = "query",
    mask: SomeMask = None,
    guard: Annotated[Detector | Guard | None, Converted(_as_guard)] = None,
    recipe: RefusalRecipe | None = None,
    on_error: Literal["raise", "refuse"] = "raise",
    show_unguarded: bool = False,
    stream: Any = False,
) -> str:
    """The model's greedy reply to one prompt; with a guard, a refusal of what the guard flags.

    Args:
        model: From `load_model`, or what it takes.
        prompt: What is asked: a prompt, or its text.
        max_new_tokens: Length of the reply at most, a forced opening included.
        heads: Heads to mask in the prompt and while decoding, as (layer, head) or "L0H1". The guard judges the prompt
            by the model as it is, without this mask.
        projection: Which projection of the heads is masked, `"query"` or `"value"`.
        mask: How they are masked, a `Mask` or the name of its form; `Mask()` by default.
        guard: A fitted detector, or the folder of a stored one; what it flags is refused. Or a guard that needs none,
            or its name (`"safety-prompt"`, `"ecso"`, `"eta"`). Without one this is plain generation.
        recipe: How to refuse; `RefusalRecipe.for_model(model)` by default.
        on_error: What happens when detection itself fails: `"raise"` passes the error on, `"refuse"` refuses. A prompt
            whose detection failed is never answered.
        show_unguarded: Also generate what the model says without the guard, as `.unguarded` of the reply.
        stream: A function that is called with each piece of text as it is decoded, or True to write them to standard
            output.

    Returns:
        The reply. With a detector it is a `Reply`: a string that also knows `flagged`, `score`, `threshold`, `error`
        and `unguarded`.

    Raises:
        ArgumentError: For an argument that cannot be what it says, or a mask without heads.
        MaskError: For heads that the model has not.
        DetectorError: For an unfitted guard, a guard of another model, or a recipe the model cannot write.

    Examples:
        >>> import workbench as wb
        >>> from workbench.detectors import OneHeadDetector
        >>> model = wb.load_model("planted")
        >>> prompts = wb.load_prompts("planted", n=48)
        >>> safe = prompts.where(label="safe")[0]
        >>> wb.generate(model, safe)
        'sure here it is'
        >>> unsafe = prompts.where(label="unsafe")[0]
        >>> wb.generate(model, unsafe), wb.generate(model, unsafe, heads="L3H1")
        ('i cannot help with that', 'sure here it is')
        >>> guard = OneHeadDetector().fit(model, prompts)
        >>> wb.generate(model, safe, guard=guard).flagged
        False
    """
    if mask is not None and not heads:
        raise ArgumentError("generate: mask says how heads are masked, and there are none. Give heads=[(layer, head)].")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "heads": heads, "projection": projection, "mask": mask}
    streaming = _streaming(model, stream)
    if not isinstance(guard, Detector):
        if show_unguarded or recipe is not None:
            raise DetectorError(
                "show_unguarded and recipe are for guarded generation: give guard=detector, or leave them out."
            )
        if guard is not None:
            if heads or streaming:
                raise DetectorError(f"The guard {guard.name!r} takes no heads to mask, and its reply does not stream.")
            plain = model.generate(prompt, max_new_tokens=max_new_tokens)
            return guard.replies(model, [prompt], [plain], max_new_tokens=max_new_tokens)[0]
        return model.generate(prompt, **options, **streaming)
    recipe = recipe or RefusalRecipe.for_model(model)
    recipe.check(model)
    score, error = float("nan"), ""
    try:
        score = float(guard.decision_function(model, [prompt])[0])
        if not math.isfinite(score):
            raise DetectorError(f"The guard's score of prompt {prompt.id!r} is {score}, which says nothing about it.")
    except Exception as failure:  # whatever broke the detection, the prompt must not get through
        if on_error == "raise":
            raise
        error = f"{type(failure).__name__}: {failure}"
    flagged = None if error else score > guard.threshold
    if flagged is False:
        text = model.generate(prompt, **options, **streaming)
    else:
        text = _refuse(model, prompt, recipe, {**options, **streaming}, failed=bool(error))
    reply = Reply(text)
    reply.flagged, reply.score, reply.threshold, reply.error = flagged, score, guard.threshold, error
    reply.unguarded = None
    if show_unguarded:
        reply.unguarded = text if flagged is False else model.generate(prompt, **options)
    return reply


def _refuse(model: HookedLVLM, prompt: Prompt, recipe: RefusalRecipe, options: dict[str, Any], *, failed: bool) -> str:
    alerted = recipe.alerted(prompt)
    try:
        encoded = model.encode(alerted)
        forced = ForcedOpening(token_ids(model, recipe.opening), encoded.n_tokens)
        return model.generate(alerted, logits_processor=[forced], **options)
    except Exception:
        if not failed:
            raise
        return recipe.opening  # what broke the detection broke the reply too; the opening alone is a refusal


class Pieces(TextStreamer):
    """Hands each piece of text on as soon as it is whole words."""

    def __init__(self, model: HookedLVLM, take: Callable[[str], object]) -> None:
        super().__init__(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.take = take

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.take(text)


def _streaming(model: HookedLVLM, stream: bool | Callable[[str], object]) -> dict[str, Any]:
    if stream is False:
        return {}
    if stream is True:
        stream = sys.stdout.write
    if not callable(stream):
        raise DetectorError(f"stream must be True, False or a function of a piece of text; got {stream!r}.")
    return {"streamer": Pieces(model, stream)}
