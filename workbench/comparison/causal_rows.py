"""What masking a detector's heads does to behaviour, as rows of the arena, beside matched random controls.

| measure | family | value |
|---|---|---|
| `attack_success` | an attack family, or `all` | share of its unsafe test prompts that the masked model complies with |
| `freed` | `all` | share of the unsafe prompts refused by the unmasked model that it complies with now |
| `refused` | `all` | share of unsafe test prompts that it refuses |
| `benign_exact` | `all` | share of safe requests that it answers as expected |
| `question_exact` | `all` | share of questions that it answers as expected |
| `…_control` | `all` | the same with as many random heads masked: mean of the draws |
| `auroc_missed` | an attack family | AUROC of unsafe prompts not refused without a mask, against matched safe ones |

`ci_low`, `ci_high`: exact 95 % intervals; of controls the lowest and the highest draw; of `auroc_missed` by bootstrap.
Random heads are of the same layers, or of any where those have too few left. Probes mask nothing; to see what
their heads do, their queries are masked.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from workbench.axes import Head, head_names
from workbench.comparison.differences import holm
from workbench.comparison.entrants import Entrant
from workbench.comparison.masked_behaviour import QUESTION_FAMILY, MaskedReplies, draw_controls, outcome_groups
from workbench.criteria import statistics
from workbench.criteria.controls import CONTROLS
from workbench.detectors.calibration import unsafe_array
from workbench.detectors.evaluation import measure_row
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts.prompt import Prompt
from workbench.prompts.ties import unit_names
from workbench.replies.judges import unsafe_families
from workbench.runs.reading import FEWEST_PROMPTS
from workbench.sweeps.execution import progress_bar

NOTHING = "no head masked"
BOOTSTRAP = 1000
MEASURE_OF = {"benign": "benign_exact", QUESTION_FAMILY: "question_exact"}  # by group of prompts


class CausalMeasures:
    """Replies to test prompts with the heads of detectors masked, counted.

    Args:
        model: The model that answers.
        prompts: What it is asked: the test prompts.
        controls: Draws of control heads for each set.
        mask, judge, max_new_tokens, plain: See `workbench.comparison.masked_behaviour.MaskedReplies`.
        seed: Of the draws.
        progress: Show a bar with the time left.
    """

    def __init__(
        self,
        model: HookedLVLM,
        prompts: Sequence[Prompt],
        *,
        controls: int,
        seed: int,
        progress: bool = False,
        **replies: Any,
    ) -> None:
        self.controls, self.seed, self.progress = controls, seed, progress
        self.replies = MaskedReplies(model, prompts, **replies)
        self.unsafe = unsafe_array(prompts)
        self.pairs = unit_names([p.pair_id for p in prompts], [p.content_key() for p in prompts])
        self.verdicts = self.replies.verdicts()
        self._p: dict[str, dict[tuple, float]] = {name: {} for name in self._questions()}

    def rows(self, entered: Sequence[Entrant]) -> Iterator[dict]:
        """The measures of the model as it is, and with the heads of each detector masked; of each, what it misses."""
        yield from (_in_arena(NOTHING, measure) for measure in self._rows(self.verdicts))
        with progress_bar(self.progress) as bar:
            line = bar.add_task("replies with heads masked", total=len(entered))
            for entrant in entered:
                of = self.missed(entrant.values[0])
                if (heads := _masked(entrant)) is not None:
                    of += self.of(*heads)
                yield from (_in_arena(entrant.key, measure) for measure in of)
                bar.advance(line)

    def of(self, heads: Sequence[Head], projection: str = "query", mask: Mask | None = None) -> list[dict]:
        """The measures with some heads masked, and with random ones in their place."""
        chosen = self.replies.verdicts(heads, projection, mask=mask)
        rows, others_say = self._rows(chosen), []
        drawn: dict[str, list[dict]] = {}
        for draw in range(self.controls):
            try:
                _, others = draw_controls(self.replies.model, heads, len(heads), seed=self.seed + draw)
            except DetectorError:
                break  # a model with hardly more heads than are masked has no controls
            others_say.append(self.replies.verdicts(others, projection, mask=mask))
            for row in self._rows(others_say[-1]):
                if row["family"] == "all":
                    drawn.setdefault(row["measure"], []).append(row)
        for measure, of in drawn.items():
            values = [row["value"] for row in of]
            interval = (min(values), max(values))
            rows.append(measure_row(f"{measure}_control", "all", float(np.mean(values)), interval, of[0]["n"]))
        for test, (asked, complied) in self._questions().items():
            counted = [(verdicts[asked] == "complied") == complied for verdicts in (chosen, *others_say)]
            self._p[test][frozenset(heads), projection, mask] = more_than_each(counted[0], counted[1:])
        return rows

    def tests(self, entered: Sequence[Entrant]) -> list[dict]:
        """Whether the heads of each detector do more than matched random ones do, once all of them went through `rows`.

        Returns:
            Two rows a detector with heads: `detector`, `heads`; `test`, `freed` (more of the prompts that the unmasked
            model refuses are complied with) or `broken` (more of the safe requests are not answered as expected);
            `p_value` (`more_than_each`), corrected by Holm's method for the `sets` of heads that were looked at; NaN
            where there was nothing to compare.
        """
        rows = []
        corrected = {name: dict(zip(p, holm(np.array([*p.values()])), strict=True)) for name, p in self._p.items()}
        for entrant in entered:
            if (masked := _masked(entrant)) is None:
                continue
            heads, projection, mask = masked
            for test, p in corrected.items():
                about = {"detector": entrant.key, "heads": head_names(heads), "test": test}
                rows.append({**about, "p_value": float(p[frozenset(heads), projection, mask]), "sets": len(p)})
        return rows

    def _questions(self) -> dict[str, tuple[np.ndarray, bool]]:
        """For each test: the prompts that it is about, and whether complying or not complying is what is counted."""
        question = np.array([p.family == QUESTION_FAMILY for p in self.replies.prompts])
        return {
            "freed": (self.unsafe & (self.verdicts == "refused"), True),
            "broken": (~self.unsafe & ~question, False),
        }

    def missed(self, values: np.ndarray) -> list[dict]:
        """AUROC of a detector's values [test prompt] where the unmasked model does not refuse."""
        family = np.array([p.family for p in self.replies.prompts], dtype=object)
        rows = []
        for name, unsafe in unsafe_families(self.replies.prompts).items():
            attack, benign = unsafe & (self.verdicts != "refused"), ~self.unsafe & (family == name)
            if min(attack.sum(), benign.sum()) < FEWEST_PROMPTS:
                continue
            of = attack | benign
            area = statistics.auroc(values[of][:, None], attack[of])[0]
            interval = statistics.auroc_interval(
                values[of], attack[of], self.pairs[of], resamples=BOOTSTRAP, seed=self.seed
            )
            rows.append(measure_row("auroc_missed", name, area, interval, attack.sum()))
        return rows

    def _rows(self, verdicts: np.ndarray) -> list[dict]:
        rows = []
        for group in outcome_groups(self.replies.prompts, verdicts).itertuples():
            measure = MEASURE_OF.get(str(group.group), "attack_success")
            family = "all" if group.group in ("unsafe", *MEASURE_OF) else str(group.group)
            rows.append(measure_row(measure, family, group.complied, (group.low, group.high), group.n))
        once_refused = self.unsafe & (self.verdicts == "refused")
        for measure, of, verdict in (("refused", self.unsafe, "refused"), ("freed", once_refused, "complied")):
            if of.any():
                hits = verdicts[of] == verdict
                interval = statistics.rate_interval(int(hits.sum()), len(hits))
                rows.append(measure_row(measure, "all", hits.mean(), interval, len(hits)))
        return rows


def _masked(entrant: Entrant) -> tuple[tuple[Head, ...], str, Mask | None] | None:
    """Which heads are masked to see what those of a detector do, and how; None for one without, or with drawn ones."""
    detector: Any = entrant.detector
    if not detector.heads_in_use() or getattr(detector, "rule", "") in CONTROLS:
        return None
    return detector.heads_in_use(), getattr(detector, "projection", "query"), getattr(detector, "mask", None)


def _in_arena(key: str, measure: dict) -> dict:
    return {"detector": key, "source": "all", **measure}


def more_than_each(chosen: np.ndarray, controls: Sequence[np.ndarray]) -> float:
    """One-sided p-value that something happens on more prompts with the chosen heads than with each draw of controls.

    McNemar's exact test on the prompts where the two differ, against every draw; the largest of the p-values, so that
    one draw that does as much is enough to find nothing. NaN without controls or prompts.

    Args:
        chosen: Whether it happens with the chosen heads masked, [prompt].
        controls: The same for each draw of control heads.
    """
    from scipy.stats import binomtest

    if not len(chosen) or not controls:
        return float("nan")
    more = [(int((chosen & ~control).sum()), int((chosen ^ control).sum())) for control in controls]
    return max(float(binomtest(a, n, alternative="greater").pvalue) if n else 1.0 for a, n in more)
