"""`EcsoGuard`: answer; judge the answer oneself; if it is unsafe, answer again from a caption, without the picture."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt
from workbench.replies.batches import generate_batch
from workbench.replies.guards.guard import Guard, GuardRecord, first_writable
from workbench.replies.guards.own_verdict import QUESTIONS, OwnVerdict, Question

# `{text}` stands for the request: the caption is to say what bears on it. The last one is Pocket's.
CAPTIONS = ("Describe the picture, with what matters for this request: {text}", "describe the picture .")


class EcsoGuard(Guard):
    """ECSO: eyes closed, safety on. The aligned language model answers where the picture misled the whole.

    The model answers, and is asked whether its answer is unsafe. If it says so, it captions the picture with the
    request in view, and answers again from caption and request, without the picture. Prompts without a picture keep
    their reply.

    Args:
        questions: By which it judges itself.
        captions: By which it is asked for a caption; the first whose words it knows.

    Cost:
        A reply and a verdict; where that is unsafe, a caption and a second reply.

    Source:
        ECSO (ECCV 2024), gyhdog99/ECSO. Steps as released; the words are ours.
    """

    name: ClassVar[str] = "ecso"

    def __init__(self, *, questions: tuple[Question, ...] = QUESTIONS, captions: tuple[str, ...] = CAPTIONS) -> None:
        self.questions, self.captions = questions, captions

    def replies(
        self,
        model: HookedLVLM,
        prompts: Sequence[Prompt],
        plain: Sequence[str],
        *,
        max_new_tokens: int,
        progress: bool = False,
    ) -> list[str]:
        judge = OwnVerdict(model, self.questions)
        asks = first_writable(model, self.captions, "the question for a caption")
        unsafe = [
            i
            for i, (prompt, reply) in enumerate(zip(prompts, plain, strict=True))
            if prompt.image is not None and judge.unsafe(prompt, reply) > 0
        ]
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        about = [replace(prompts[i], text=asks.replace("{text}", prompts[i].text), prefill="") for i in unsafe]
        captions = generate_batch(model, about, progress=progress and "captions", **options)
        blind = [
            replace(prompts[i], image=None, text=f"{caption}\n{prompts[i].text}".strip())
            for i, caption in zip(unsafe, captions, strict=True)
        ]
        again = generate_batch(model, blind, progress=progress and "replies without the picture", **options)
        told = dict(zip(unsafe, again, strict=True))
        return [told.get(i, reply) for i, reply in enumerate(plain)]


GUARDS = (
    GuardRecord(
        "ecso",
        EcsoGuard,
        needs="nothing but the model",
        says="a reply the model itself finds unsafe is given again, from a caption in place of the picture",
        source="ECSO (ECCV 2024), gyhdog99/ECSO",
    ),
)
