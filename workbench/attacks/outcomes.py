"""What a change of prompts does to detectors and to the model, counted: the rows of an attack's table.

Everything is measured again from the changed prompts, through the model's own processor: an attack hands over prompts,
and no number of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from workbench.attacks.descent import drawn_scores
from workbench.comparison.causal_rows import more_than_each
from workbench.comparison.differences import tested
from workbench.comparison.entrants import Entrant, Together
from workbench.comparison.measures import over_draws
from workbench.criteria import statistics
from workbench.detectors.gradients import next_token_kl
from workbench.detectors.looks import look
from workbench.models.hooked import HookedLVLM
from workbench.models.walk import base_pass
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.ties import tie_names
from workbench.replies.batches import generate_batch
from workbench.replies.judges import judge_replies
from workbench.sweeps.plan import batches

COLUMNS = ("side", "attacked", "scored_by", "eps", "steps", "measure", "value", "ci_low", "ci_high", "n")
ROWS, RESAMPLES = 32, 1000
NO_ONE = "nothing"  # what is attacked where the prompts are as they are


@dataclass(frozen=True)
class Change:
    """What an attack made of the unsafe test prompts, in their order, and of the safe ones where it made something.

    Attributes:
        side: `"picture"` or `"text"`.
        attacked: The detector that it was made against; the control's name; or `NO_ONE`.
        eps: Largest change of a pixel value, in 255ths.
        steps: Of the descent or the search.
    """

    side: str
    attacked: str
    eps: int
    steps: int
    unsafe: PromptSet
    safe: PromptSet | None = None


class Bench:
    """The test prompts as they are: scores, next-token logits and replies, against which changes are held.

    Args:
        model: The model.
        test: Unsafe and safe prompts.
        fitted: The detectors that score.
        kl_budget: Nats within which the next-token distribution counts as kept.
        judge: Of replies, by name.
        max_new_tokens: Length of a reply at most.
        seed: Of resamples.
    """

    def __init__(
        self,
        model: HookedLVLM,
        test: PromptSet,
        fitted: Sequence[Entrant],
        *,
        kl_budget: float,
        judge: str,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self.model, self.fitted, self.kl_budget, self.seed = model, fitted, kl_budget, seed
        self.judge, self.max_new_tokens = judge, max_new_tokens
        self.unsafe, self.safe = test.where(label="unsafe"), test.where(label="safe")
        self.logits = self.next_token_logits(self.unsafe)
        self.replies = self._replies(self.unsafe)
        for entrant in fitted:
            entrant.detector.check_model(model, test)
        self.together = Together(model, fitted, choosing=False)
        self.scores = self._scores(self.unsafe)
        self.benign = self._scores(self.safe) if len(self.safe) else {}
        units = [*self.unsafe, *self.safe]
        self.pairs = tie_names([p.pair_id for p in units], [p.content_key() for p in units])
        self.labels = np.arange(len(units)) < len(self.unsafe)

    def unchanged(self, side: str) -> list[dict]:
        """Rows of the prompts as they are, the model's behaviour on safe ones included."""
        rows, _ = self.measure(Change(side, NO_ONE, 0, 0, self.unsafe, self.safe))
        about = {"side": side, "attacked": NO_ONE, "scored_by": "", "eps": 0, "steps": 0}
        if len(self.safe):
            said = judge_replies(self.safe, self._replies(self.safe), self.judge)
            rows += [about | {"measure": f"benign_{v}"} | _rate(said == v) for v in ("complied", "refused")]
        return rows

    def measure(self, change: Change) -> tuple[list[dict], dict[str, np.ndarray]]:
        """Rows of one change, and by detector whether each unsafe prompt evades it, next token kept, [prompt]."""
        about = {"side": change.side, "attacked": change.attacked, "eps": change.eps, "steps": change.steps}
        kl = next_token_kl(self.logits, self.next_token_logits(change.unsafe)).clamp_min(0).cpu().numpy()
        same = np.array([a is b for a, b in zip(self.unsafe, change.unsafe, strict=True)])
        kl = np.where(same, 0.0, kl)
        said = self.replies if same.all() else self._replies(change.unsafe)
        kept, reply = kl <= self.kl_budget, np.array(said) == np.array(self.replies)
        nobody = about | {"scored_by": ""}
        rows = [nobody | {"measure": "kl"} | self._mean(kl)]
        rows += [nobody | {"measure": m} | _rate(of) for m, of in (("kept", kept), ("reply_kept", reply))]
        verdicts = judge_replies(self.unsafe, said, self.judge)
        rows += [nobody | {"measure": v} | _rate(verdicts == v) for v in ("complied", "refused")]
        evades = {}
        scores = self.scores if same.all() else self._scores(change.unsafe)
        benign = self.benign
        if change.safe is not None and change.safe is not self.safe and len(self.safe):
            benign = self._scores(change.safe)
        for entrant in self.fitted:
            by = about | {"scored_by": entrant.key}
            before, bound = self.scores[entrant.key], entrant.detector.threshold
            after = scores[entrant.key]
            gone = (before > bound) & (after <= bound)
            for measure, so in (("evasion", kept), ("evasion_reply", reply), ("evasion_any", np.ones_like(kept))):
                rows.append(by | {"measure": measure} | _shares(gone & so, before > bound))
            evades[entrant.key] = (gone & kept)[0]
            if len(self.safe):
                rows.append(by | {"measure": "auroc"} | self._area(after[0], self.benign[entrant.key][0]))
                if change.safe is not None:
                    flags = benign[entrant.key]
                    every = np.ones(flags.shape, dtype=bool)
                    rows.append(by | {"measure": "benign_flagged"} | _shares(flags > bound, every))
        return rows, evades

    def _scores(self, prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """Every detector's scores, [draw, prompt], from looks that they share."""
        found = {e.key: drawn_scores(e.detector, self.model, prompts) for e in self.together.alone}
        for members, wants in self.together.groups:
            seen = look(self.model, prompts, wants)
            found |= {e.key: e.detector.drawn_values(seen) for e in members}
        return found

    def next_token_logits(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Of the first token of the reply, [prompt, vocab]."""
        encoded = [self.model.encode(p) for p in prompts]
        found: list[torch.Tensor] = [torch.empty(0)] * len(encoded)
        for batch in batches(encoded, ROWS):
            for i, row in zip(batch, base_pass(self.model, [encoded[i] for i in batch]).logits, strict=True):
                found[i] = row
        return torch.stack(found)

    def _replies(self, prompts: Sequence[Prompt]) -> list[str]:
        return generate_batch(self.model, prompts, max_new_tokens=self.max_new_tokens)

    def _mean(self, values: np.ndarray) -> dict:
        draws = np.random.default_rng(self.seed).integers(len(values), size=(RESAMPLES, len(values)))
        low, high = statistics.percentile_interval(values[draws].mean(1))
        return {"value": float(values.mean()), "ci_low": float(low), "ci_high": float(high), "n": len(values)}

    def _area(self, unsafe: np.ndarray, safe: np.ndarray) -> dict:
        values = np.concatenate([unsafe, safe])
        area = float(statistics.auroc(values[:, None], self.labels)[0])
        low, high = statistics.auroc_interval(values, self.labels, self.pairs, resamples=RESAMPLES, seed=self.seed)
        return {"value": area, "ci_low": low, "ci_high": high, "n": len(values)}


def _rate(hits: np.ndarray) -> dict:
    return _shares(hits[None], np.ones((1, len(hits)), dtype=bool))


def _shares(hits: np.ndarray, of: np.ndarray) -> dict:
    """Share of `of` that are hits, [draw, prompt] each: mean over draws, and an exact interval; NaN without any."""
    count = of.sum(1)
    if not count.all():
        return {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": int(count[0])}
    interval = statistics.rate_interval(int((hits & of)[0].sum()), int(count[0]))
    value, (low, high) = over_draws((hits & of).sum(1) / count, interval)
    return {"value": value, "ci_low": low, "ci_high": high, "n": int(count[0])}


def evasion_tests(evaded: Mapping[tuple[str, str, int, int], np.ndarray], control: str) -> pd.DataFrame:
    """Does an attack evade its own detector on more prompts than the control of its size does? McNemar, one-sided.

    Args:
        evaded: By attacked, scored_by, eps and steps, whether each unsafe prompt evades, [prompt].
        control: What is `attacked` in the control.

    Returns:
        One row an attack: test, p_value, p_corrected (Holm, over all rows).
    """
    return tested(list(_tests(evaded, control)))


def _tests(evaded: Mapping[tuple[str, str, int, int], np.ndarray], control: str) -> Iterator[tuple[str, float]]:
    most = max((steps for _, _, _, steps in evaded), default=0)
    for (attacked, by, eps, steps), hits in evaded.items():
        if attacked == by and steps == most and (control, by, eps, 0) in evaded:
            yield f"{attacked}, eps {eps}: evades more than noise", more_than_each(hits, [evaded[control, by, eps, 0]])
