"""`GradSafe`: do the gradients of the reply "Sure" look like those of unsafe prompts?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from workbench.checking import Finite, Whole, checked
from workbench.detectors.calibration import calibration_parts
from workbench.detectors.detector import Detector, check_is_model
from workbench.detectors.record import DetectorRecord
from workbench.detectors.stored import finite_array, finite_vector
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.precision import double_kept
from workbench.models.walk import join
from workbench.prompts.prompt import Prompt, PromptSet, as_prompts
from workbench.sweeps.execution import progress_bar

PUBLISHED = 0.25
SLICES = partial(finite_array, dims=2)
Take = Callable[[int, Tensor], None]  # what is done with the gradient of a weight, by its number


class GradSafe(Detector):
    """Detects unsafe prompts by the gradient that answering them with "Sure" would have on the weights.

    The loss of the reply, which is the word and the end of the text, is differentiated by every matrix of the decoder's
    attention and MLPs. A slice is a row or a column of a gradient. The reference is the mean gradient of some unsafe
    prompts; slices whose cosine with it is larger for those than for as many safe prompts by more than `gap`, on the
    mean, are kept; the score of a prompt is its mean cosine with the reference over them, -1 to 1.

    Args:
        reply: The word that complies.
        references: Prompts of each label that slices are kept by, drawn from the selection part (theirs: 2).
        gap: Least difference of mean cosines of a slice that is kept (theirs: 1).
        threshold: A score over which a prompt is unsafe (theirs: 0.25), or `"kde"`, set on the other prompts.
        seed: Of the draw of references, and of a split that has to be made.

    Attributes:
        slices: Weight, axis (0 a row, 1 a column) and index of each kept slice, [slice, 3].
        reference: The reference in these slices, one after the other.

    Cost:
        A forward and a backward pass a prompt, counted as three passes. The gradient of one matrix is held at a time;
        while fitting, the reference, as large as the decoder's matrices in float32.

    Source:
        GradSafe (ACL 2024), xyq7/GradSafe, read in its released code. Its references are four sentences of its own;
        here they come from the calibration prompts. It takes gradients of all weights named self or mlp, of the text
        model, as here.
    """

    name: ClassVar[str] = "gradsafe"
    learned: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"slices": SLICES, "reference": finite_vector}

    @checked
    def __init__(
        self,
        *,
        reply: str = "Sure",
        references: Annotated[int, Whole(1, 1000)] = 2,
        gap: Annotated[float, Finite(-2, 2)] = 1.0,
        threshold: str | float = PUBLISHED,
        seed: int = 0,
    ) -> None:
        super().__init__(threshold, seed)
        self.reply, self.references, self.gap = reply, references, gap
        self.slices, self.reference = np.empty((0, 3)), np.empty(0)

    def __repr__(self) -> str:
        return f"GradSafe({len(self.slices)} slices, threshold {self.threshold:.4g})"

    def fit(self, model: HookedLVLM, prompts: Sequence[Prompt], *, progress: bool = False) -> Self:
        """Keep slices by a few prompts of the selection part, and look at the threshold on the others."""
        check_is_model(model)
        parts = calibration_parts(as_prompts(prompts), seed=self.seed)
        rng, drawn = np.random.default_rng(self.seed), []
        for label in ("unsafe", "safe"):
            of = parts.selection.where(label=label)
            drawn.append([of[i] for i in sorted(rng.permutation(len(of))[: self.references])])
        self._keep(model, *drawn)
        seen = {p.id for of in drawn for p in of}
        rest = replace(parts, threshold=PromptSet(p for p in parts.threshold if p.id not in seen))
        found = self.observe(model, rest.threshold, choosing=False, progress=progress)
        self._settle(model, self.values(found), rest, None)
        return self

    def observe(self, model: HookedLVLM, prompts: Sequence[Prompt], *, choosing: bool, progress: bool) -> xr.Dataset:
        found = np.empty(len(prompts))
        with progress_bar(progress) as bar:
            line = bar.add_task("gradients of prompts", total=len(prompts))
            for place, prompt in enumerate(prompts):
                found[place] = self._cosine(model, prompt)
                bar.advance(line)
        return xr.Dataset({"cosine": ("prompt", found)})

    def values(self, seen: xr.Dataset) -> np.ndarray:
        return seen["cosine"].values

    def _keep(self, model: HookedLVLM, unsafe: Sequence[Prompt], safe: Sequence[Prompt]) -> None:
        mean: dict[int, Tensor] = {}

        def add(number: int, gradient: Tensor) -> None:
            share = gradient.float().cpu() / len(unsafe)
            mean[number] = mean[number] + share if number in mean else share

        for prompt in unsafe:
            gradients(model, prompt, self.reply, add)
        gaps: dict[tuple[int, int], Tensor] = {}

        def compare(sign: float, number: int, gradient: Tensor) -> None:
            for axis in (0, 1):
                cosine = sign * cosines(gradient.float().cpu(), mean[number], 1 - axis)
                gaps[number, axis] = gaps.get((number, axis), torch.zeros(())) + cosine

        for of, sign in ((unsafe, 1.0), (safe, -1.0)):
            for prompt in of:
                gradients(model, prompt, self.reply, partial(compare, sign / len(of)))
        kept = [(n, axis, int(i)) for (n, axis), gap in gaps.items() for i in torch.nonzero(gap > self.gap)[:, 0]]
        if not kept:
            raise DetectorError(
                f"GradSafe keeps the slices of gradients whose cosines are {self.gap:g} larger for unsafe prompts, and "
                f"for {model.name!r} the largest difference is {max(float(g.max()) for g in gaps.values()):.3g}. Give "
                "a smaller gap, or more references."
            )
        self.slices = np.array(kept, dtype=np.float64)
        parts = [mean[n][i] if axis == 0 else mean[n][:, i] for n, axis, i in kept]
        self.reference = torch.cat(parts).numpy()

    def _cosine(self, model: HookedLVLM, prompt: Prompt) -> float:
        """Mean cosine of a prompt's slices with the reference."""
        wanted: dict[tuple[int, int], list[int]] = {}
        for number, axis, index in self.slices.astype(int).tolist():
            wanted.setdefault((number, axis), []).append(index)
        found: dict[tuple[int, int], Tensor] = {}

        def take(number: int, gradient: Tensor) -> None:
            for axis in (0, 1):
                if indices := wanted.get((number, axis)):
                    found[number, axis] = (gradient if axis == 0 else gradient.T)[indices].float().cpu()

        gradients(model, prompt, self.reply, take)
        total, at = 0.0, 0
        for place, indices in wanted.items():
            mine = found[place]
            size = mine.numel()
            reference = torch.as_tensor(self.reference[at : at + size]).reshape(len(indices), -1)
            total, at = total + float(cosines(mine, reference, 1).sum()), at + size
        return total / len(self.slices)

    def _fits(self, model: HookedLVLM) -> bool:
        sizes = [tuple(weight.shape) for weight in matrices(model)]
        slices = self.slices.astype(int).tolist() if self.slices.shape[1:] == (3,) else [(-1, 0, 0)]
        if not all(0 <= n < len(sizes) and axis in (0, 1) and 0 <= i < sizes[n][axis] for n, axis, i in slices):
            return False
        return sum(sizes[n][1 - axis] for n, axis, _ in slices) == len(self.reference)


def matrices(model: HookedLVLM) -> list[nn.Parameter]:
    """Every matrix of the decoder's layers, in order: those of attention and MLPs."""
    return [weight for layer in model.layers for weight in layer.parameters() if weight.ndim == 2]


def cosines(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Cosines of slices along `dim`; 0 where one of them is zero."""
    length = a.norm(dim=dim) * b.norm(dim=dim)
    return torch.where(length > 0, (a * b).sum(dim) / torch.where(length > 0, length, 1), 0)


def gradients(model: HookedLVLM, prompt: Prompt, reply: str, take: Take) -> None:
    """Hand over the gradient of the loss of a reply by each matrix, one at a time; nothing of it is kept."""
    asked, answered = model.encode(prompt), model.encode(replace(prompt, prefill=(prompt.prefill + reply)))
    target, unknown = answered.input_ids[0, asked.n_tokens :], getattr(model.tokenizer, "unk_token_id", None)
    same = bool((answered.input_ids[0, : asked.n_tokens] == asked.input_ids[0]).all()) if len(target) else False
    if not same or unknown in target.tolist():
        raise DetectorError(
            f"GradSafe takes the loss of the reply {reply!r}, and {model.name!r} cannot write it after prompt "
            f"{prompt.id!r} (its tokens are unknown, or run into the prompt's). Give another word as reply=."
        )
    end = model.tokenizer.eos_token_id
    target = target if end is None else torch.cat([target, target.new_tensor([end])])
    with model.lock, _differentiated(matrices(model), take), torch.enable_grad(), double_kept(model.dtype):
        model.work.count(3 * model.n_layers, 1, answered.n_tokens)
        logits = model.hf(**join([answered]), use_cache=False).logits[0, asked.n_tokens - 1 :]
        nn.functional.cross_entropy(logits[: len(target)].float(), target).backward()


@contextmanager
def _differentiated(weights: Sequence[nn.Parameter], take: Take) -> Iterator[None]:
    """For the length of a block, hand the gradient of each weight over as soon as it is there, and let it go."""
    if fixed := [weight for weight in weights if not weight.is_floating_point()]:
        raise DetectorError(
            f"{len(fixed)} matrices of the model are quantised, and have no gradient. Load it in float."
        )
    numbers = {id(weight): number for number, weight in enumerate(weights)}

    def hand_over(weight: Tensor) -> None:
        assert weight.grad is not None
        take(numbers[id(weight)], weight.grad)
        weight.grad = None

    hooks = []
    try:
        for weight in weights:
            weight.requires_grad_(True)
            hooks.append(weight.register_post_accumulate_grad_hook(hand_over))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


DETECTORS = (
    DetectorRecord(
        "gradsafe",
        GradSafe,
        needs="a few labelled prompts, and a word with which the model complies",
        says="mean cosine of the gradients of a reply that complies with those of unsafe prompts, -1 to 1",
        source="GradSafe (ACL 2024), xyq7/GradSafe",
    ),
)
