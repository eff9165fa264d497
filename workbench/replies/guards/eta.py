"""`EtaGuard`: evaluate, then align: two judges look at reply and picture; what both find unsafe is written anew."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Protocol

from PIL import Image

from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt
from workbench.replies.batches import can_write, generate_batch
from workbench.replies.guards.guard import Guard, GuardRecord
from workbench.replies.guards.own_verdict import OwnVerdict
from workbench.sweeps.execution import progress_bar

UNSAFE_CONTENT = "violence, weapons, drugs, hate, nudity, self-harm, fraud or other dangerous or illegal things"
PREFIXES = ("As an AI assistant", "sorry", "i cannot")
REPLY_BOUND, PICTURE_BOUND = 0.06, 0.16  # published, for ArmoRM and CLIP
OWN_BOUND = 0.5  # of the stand-ins, which give probabilities
CANDIDATES, TEMPERATURE, ALPHA = 5, 1.5, 1e-4
_SENTENCE = re.compile(r".*?[.!?\n]+\s*", re.DOTALL)


class ReplyJudge(Protocol):
    """A judge of replies, such as a reward model."""

    def reward(self, prompt: Prompt, reply: str) -> float:
        """How safe and helpful the reply is; higher = better."""


class PictureJudge(Protocol):
    """A judge of pictures, such as CLIP."""

    def similarity(self, image: Image.Image, text: str) -> float:
        """How well picture and text go together; higher = better."""


class EtaGuard(Guard):
    """ETA: a reply is written anew, sentence by sentence, where the reply and the picture are both found unsafe.

    The reply is unsafe where its reward is at most `reply_bound`, the picture where its similarity with a list of
    unsafe contents is at least `picture_bound`; a prompt without a picture goes by its reply alone. What is unsafe
    begins with a prefix, and of five sampled next sentences the one with the largest reward + alpha / number of the
    sentence × similarity is taken, until the reply ends.

    Args:
        reply_judge: `RewardFolder(path)` for a local reward model, or anything with its method. None: the guarded model
            is asked itself; a stand-in that shows the steps, and no measure of ETA.
        picture_judge: `ClipFolder(path)`, or anything with its method; None as above.
        reply_bound: Published for ArmoRM: 0.06. By default that, and 0.5 for the stand-in.
        picture_bound: Published for CLIP: 0.16. By default that, and 0.5 for the stand-in.
        alpha: Weight of the picture. Its value was not found; this one is ours.
        candidates: Sentences sampled (theirs: 5).
        temperature: Of sampling (theirs: 1.5).
        seed: Of sampling.

    Cost:
        A reply and two verdicts; where both are unsafe, five times the tokens of another reply.

    Source:
        ETA (ICLR 2025, arXiv 2410.06625). Its reward model needs code of its own, which is not run here.
    """

    name: ClassVar[str] = "eta"

    def __init__(
        self,
        *,
        reply_judge: ReplyJudge | None = None,
        picture_judge: PictureJudge | None = None,
        reply_bound: float | None = None,
        picture_bound: float | None = None,
        alpha: float = ALPHA,
        candidates: int = CANDIDATES,
        temperature: float = TEMPERATURE,
        seed: int = 0,
    ) -> None:
        self.reply_judge, self.picture_judge = reply_judge, picture_judge
        self.reply_bound = reply_bound if reply_bound is not None else REPLY_BOUND if reply_judge else OWN_BOUND
        bound = PICTURE_BOUND if picture_judge else OWN_BOUND
        self.picture_bound = picture_bound if picture_bound is not None else bound
        self.alpha, self.candidates, self.temperature, self.seed = alpha, candidates, temperature, seed

    def replies(
        self,
        model: HookedLVLM,
        prompts: Sequence[Prompt],
        plain: Sequence[str],
        *,
        max_new_tokens: int,
        progress: bool = False,
    ) -> list[str]:
        rewards = self.reply_judge or OwnVerdict(model)
        pictures = self.picture_judge or OwnVerdict(model)
        prefix = next((text for text in PREFIXES if can_write(model, text)), None)
        if prefix is None:
            raise DetectorError(f"{model.name!r} can write none of {', '.join(map(repr, PREFIXES))}, to begin with.")
        replies = list(plain)
        with progress_bar(progress) as bar:
            line = bar.add_task("replies under eta", total=len(prompts))
            for i, prompt in enumerate(prompts):
                bar.advance(line)
                if rewards.reward(prompt, plain[i]) > self.reply_bound:
                    continue
                if prompt.image is not None and pictures.similarity(prompt.image, UNSAFE_CONTENT) < self.picture_bound:
                    continue
                replies[i] = self._aligned(model, prompt, prefix, rewards, pictures, max_new_tokens)
        return replies

    def _aligned(
        self,
        model: HookedLVLM,
        prompt: Prompt,
        prefix: str,
        rewards: ReplyJudge,
        pictures: PictureJudge,
        max_new_tokens: int,
    ) -> str:
        """Best of some sampled sentences, one after the other, behind the prefix."""
        reply, number = prefix, 1
        while (left := max_new_tokens - len(model.tokenizer.encode(reply, add_special_tokens=False))) > 0:
            drawn = generate_batch(
                model,
                [replace(prompt, prefill=reply)] * self.candidates,
                max_new_tokens=left,
                do_sample=True,
                temperature=self.temperature,
                seed=self.seed + number,
            )
            sentences = sorted({(m.group().strip() if (m := _SENTENCE.match(d)) else d) for d in drawn} - {""})
            if not sentences:
                break

            def worth(sentence: str, so_far: str = reply, number: int = number) -> float:
                near = pictures.similarity(prompt.image, sentence) if prompt.image is not None else 0.0
                return rewards.reward(prompt, f"{so_far} {sentence}") + self.alpha / number * near

            reply, number = f"{reply} {max(sentences, key=worth)}", number + 1
        return reply


GUARDS = (
    GuardRecord(
        "eta",
        EtaGuard,
        needs="a reward model and a CLIP; without them the model stands in for both",
        says="what a reward model and CLIP both find unsafe is written anew, best of five sentences at a time",
        source="ETA (ICLR 2025, arXiv 2410.06625)",
    ),
)
