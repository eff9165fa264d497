"""Down a detector's score in the pixels: projected gradient steps inside a box, the model's next token kept.

Every iterate is a picture of whole numbers from 0 to 255, so that what is measured is what a user could send. Of the
iterates at which the next-token distribution is within its budget, the one with the lowest score is kept; the picture
as it was is the first of them.

Source: Madry et al., arXiv 1706.06083 (projected gradient descent); the budget on the model's own behaviour is ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workbench.detectors.detector import Detector
from workbench.detectors.gradients import next_token_kl, score_parts
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.pixels import PixelRoad, pixel_road
from workbench.models.walk import base_pass
from workbench.prompts.prompt import Prompt
from workbench.sweeps.plan import batches, plan

MARGIN = 0.05  # how far below the threshold a score is pushed, as a share of the gap between the classes
LONGEST_STEP = 16  # of one step, in pixel values
AGREEMENT = 1e-3  # largest difference from the detector's own score, as a share of the gap between the classes


@dataclass(eq=False)
class Found:
    """The best picture of each prompt so far.

    Attributes:
        pixels: `[3, height, width]` each, whole numbers.
        score: Of the worst part, in the detector's unit, [prompt].
        kl: KL(before ‖ after) of the next token, nats, [prompt].
    """

    pixels: list[Tensor]
    score: np.ndarray
    kl: np.ndarray


class Descent:
    """An attack on one detector with the pictures of some prompts.

    Args:
        model: The model that the detector watches.
        prompts: With pictures.
        detector: Fitted, with a gradient (`workbench.detectors.gradients`).
        kl_budget: Nats by which the next-token distribution may move; infinite for any.
        starts: By prompt id, another picture of the same size to start from as well, as far as the box reaches.

    Raises:
        ModelError: The family's pictures have no differentiable road.
        DetectorError: The detector's score has no gradient, or is not the one that the road leads to.

    Attributes:
        flat: Whether the score of a prompt that is flagged has no slope at the picture as it was, [flagged prompt]:
            saturated, so that nothing pulls.
    """

    def __init__(
        self,
        model: HookedLVLM,
        prompts: Sequence[Prompt],
        detector: Detector,
        *,
        kl_budget: float,
        starts: Mapping[str, Image.Image] | None = None,
    ) -> None:
        self.model, self.detector, self.kl_budget = model, detector, kl_budget
        self.roads = [pixel_road(model, prompt) for prompt in prompts]
        encoded = [road.encoded for road in self.roads]
        rows = plan(model, max(e.n_tokens for e in encoded)).rows
        self.batches = batches(encoded, max(1, rows // (2 * model.n_layers)))
        about = detector.calibration
        self.gap = abs(about["unsafe_median"] - about["safe_median"]) or 1.0
        self.logits: list[Tensor] = [torch.empty(0)] * len(self.roads)
        for batch in self.batches:
            base = base_pass(model, [encoded[i] for i in batch])
            for i, row in zip(batch, base.logits, strict=True):
                self.logits[i] = row
        clean = [road.pixels for road in self.roads]
        score, kl, slope = self._measured(clean, np.arange(len(clean)))
        flagged = score > detector.threshold
        self.flat = np.array([not bool(s.any()) for s in slope], dtype=bool)[flagged]
        self._check(prompts, score)
        self.best = Found(clean, score, kl)
        self.others = [_same_size((starts or {}).get(p.id), road) for p, road in zip(prompts, self.roads, strict=True)]

    def _check(self, prompts: Sequence[Prompt], score: np.ndarray) -> None:
        """The road's score is the detector's own."""
        theirs = largest_score(self.detector, self.model, prompts)
        off = np.abs(score - theirs)
        if not (off <= AGREEMENT * max(self.gap, float(np.abs(theirs).max()))).all():
            raise DetectorError(
                f"The differentiable score of {self.detector!r} is {off.max():.2e} from its own on prompt "
                f"{prompts[int(off.argmax())].id!r}, in {self.model.dtype}. Load the model in float32, or report this."
            )

    def within(self, eps: int, steps: Sequence[int]) -> Iterator[tuple[int, Found]]:
        """The best pictures at most `eps` away from the prompts' own in every pixel value, after each number of steps.

        Boxes are to be asked for from the smallest on: what is found in one is a start in the next.
        """
        starts = [self.best.pixels]
        if any(other is not None for other in self.others):
            starts.append([p if o is None else o for p, o in zip(self.best.pixels, self.others, strict=True)])
        runs = [[self._boxed(p, i, eps) for i, p in enumerate(pixels)] for pixels in starts]
        pulled = [np.ones(len(self.roads), dtype=bool) for _ in runs]
        last = max(steps)
        for step in range(last + 1):
            for now, moves in zip(runs, pulled, strict=True):
                # Who is well below the threshold is done, and who is on flat ground stays there.
                todo = np.flatnonzero(moves & (self.best.score > self.detector.threshold - MARGIN * self.gap))
                score, kl, slopes = self._measured(now, todo, wanted=step < last)
                self._keep(now, score, kl)
                size = step_size(eps, step, last) if step < last else 0
                for i in map(int, todo):
                    now[i] = self._boxed(now[i] - size * torch.sign(slopes[i]), i, eps)
                    moves[i] = bool(slopes[i].any())
            if step in steps:
                yield step, Found(list(self.best.pixels), self.best.score.copy(), self.best.kl.copy())

    def _keep(self, pixels: Sequence[Tensor], score: np.ndarray, kl: np.ndarray) -> None:
        better = (kl <= self.kl_budget) & (score < self.best.score)
        for i in map(int, np.flatnonzero(better)):
            self.best.pixels[i] = pixels[i]
        self.best.score = np.where(better, score, self.best.score)
        self.best.kl = np.where(better, kl, self.best.kl)

    def _boxed(self, pixels: Tensor, i: int, eps: int) -> Tensor:
        own = self.roads[i].pixels
        return torch.minimum(torch.maximum(pixels, own - eps), own + eps).clamp(0, 255)

    def _measured(
        self, pixels: Sequence[Tensor], of: np.ndarray, *, wanted: bool = True
    ) -> tuple[np.ndarray, np.ndarray, list[Tensor]]:
        """Score of the worst part, KL of the next token, and the direction that both should go down, of some prompts;
        infinite and zero for the others.
        """
        score, kl = np.full(len(pixels), np.inf), np.full(len(pixels), np.inf)
        slopes = [torch.zeros_like(p) for p in pixels]
        some = {*map(int, of)}
        for batch in filter(None, ([i for i in batch if i in some] for batch in self.batches)):
            leaves = [pixels[i].clone().requires_grad_(wanted) for i in batch]
            inputs = [self.roads[i].inputs(leaf) for i, leaf in zip(batch, leaves, strict=True)]
            with torch.set_grad_enabled(wanted):
                base = base_pass(self.model, inputs, gradients=wanted)
                parts = score_parts(self.detector, self.model, base)
                moved = next_token_kl(torch.stack([self.logits[i] for i in batch]), base.logits)
                if wanted:
                    for i, slope in zip(batch, self._slopes(leaves, parts, moved), strict=True):
                        slopes[i] = slope
            score[batch] = parts.detach().amax(0).cpu().numpy()
            kl[batch] = moved.detach().clamp_min(0).cpu().numpy()
        return score, kl, slopes

    def _slopes(self, leaves: Sequence[Tensor], parts: Tensor, moved: Tensor) -> list[Tensor]:
        """Slopes of what is over the threshold, of length 1; where the KL is over its budget, also twice its own."""
        over = ((parts - self.detector.threshold) / self.gap + MARGIN).clamp_min(0).sum()
        exceeds = moved > self.kl_budget
        found = [_unit(s) for s in torch.autograd.grad(over, leaves, retain_graph=bool(exceeds.any()))]
        if exceeds.any():
            back = torch.autograd.grad(moved[exceeds].sum(), leaves)
            found = [s + 2 * _unit(b) for s, b in zip(found, back, strict=True)]
        return found


def step_size(eps: int, step: int, steps: int) -> int:
    """How far each pixel value goes in a step: half the box at first, halved with every quarter of the way, 1 to 16."""
    return max(1, min(LONGEST_STEP, round(eps / 2 ** (1 + 4 * step // steps))))


def _unit(slope: Tensor) -> Tensor:
    length = slope.abs().sum()
    return slope / length if length else slope


def _same_size(picture: Image.Image | None, road: PixelRoad) -> Tensor | None:
    if picture is None or (picture.height, picture.width) != tuple(road.pixels.shape[1:]):
        return None
    return torch.from_numpy(np.asarray(picture, dtype=np.float64).transpose(2, 0, 1).copy()).to(road.pixels.device)


def picture_of(pixels: Tensor) -> Image.Image:
    """The picture that pixels `[3, height, width]` are."""
    return Image.fromarray(pixels.permute(1, 2, 0).to("cpu", torch.uint8).numpy())


def drawn_scores(detector: Detector, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
    """A detector's own scores, [draw, prompt]; one draw but for those that draw a head for every prompt."""
    if detector.wants(model, choosing=False) is None:
        return detector.decision_function(model, prompts)[None]
    detector.check_model(model, prompts)
    return detector.drawn_values(detector.observe(model, prompts, choosing=False, progress=False))


def largest_score(detector: Detector, model: HookedLVLM, prompts: Sequence[Prompt]) -> np.ndarray:
    """The largest of the scores that a detector may give a prompt, [prompt]: over the heads that it may draw."""
    from workbench.detectors.fused_heads import FusedHeadsDetector

    if isinstance(detector, FusedHeadsDetector) and detector.fuse == "random":
        return detector.scaled(detector.observe(model, prompts, choosing=False, progress=False)).max(0)
    return drawn_scores(detector, model, prompts)[0]
