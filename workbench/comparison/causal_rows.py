"""What masking a detector's heads does to behaviour, as rows of the breakdown, beside matched random controls.

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
their heads do, they are masked in the run's first projection.
"""

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench.axes import Head
from workbench.comparison.masked_behaviour import QUESTION_FAMILY, MaskedReplies, draw_controls, outcome_groups
from workbench.criteria import statistics
from workbench.detectors.calibration import unsafe_array
from workbench.detectors.evaluation import measure_row
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts import load_prompts
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.replies.judges import Judge, unsafe_families
from workbench.runs.reading import FEWEST_PROMPTS, prompt_coord
from workbench.runs.splits import in_split

BOOTSTRAP = 1000
MEASURE_OF = {"benign": "benign_exact", QUESTION_FAMILY: "question_exact"}  # by group of prompts


class CausalMeasures:
    """Replies to a run's test prompts with sets of heads masked, counted.

    Args:
        run: With splits (`workbench.runs.splits.with_splits`).
        model: The run's model.
        prompts: The run's prompts; None makes them again from the run's record.
        controls: Draws of control heads for each set.
        judge, max_new_tokens: See `workbench.comparison.masked_behaviour.attack_success`.
        seed: Of the draws.

    Raises:
        DetectorError: If model or prompts are not those of the run.
    """

    def __init__(
        self,
        run: xr.Dataset,
        model: HookedLVLM,
        prompts: Sequence[Prompt] | None,
        *,
        controls: int,
        judge: str | Judge,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        if run.attrs.get("weight_hash") != model.weight_hash:
            raise DetectorError(
                f"The run was made with weights {run.attrs.get('weight_hash')} ({run.attrs.get('model')!r}), and the "
                f"model given is {model.name!r} with weights {model.weight_hash}. Give the model of the run."
            )
        self.controls, self.seed = controls, seed
        self.projection = str(run["projection"].values[0])
        mask = Mask(**{name.removeprefix("mask_"): run.attrs[name] for name in Mask().describe()})
        test = in_split(run, "test")
        asked = [p for p, kept in zip(run_prompts(run, prompts), test, strict=True) if kept]
        self.replies = MaskedReplies(model, asked, mask=mask, judge=judge, max_new_tokens=max_new_tokens)
        self.unsafe = unsafe_array(asked)
        self.pairs = prompt_coord(run, "pair_id")[test]
        self.verdicts = self.replies.verdicts()

    def unmasked(self) -> list[dict]:
        """The measures of the model as it is."""
        return self._rows(self.verdicts)

    def of(self, heads: Sequence[Head], projection: str) -> list[dict]:
        """The measures with some heads masked, and with random ones in their place."""
        projection = self.projection if projection == "none" else projection
        rows = self._rows(self.replies.verdicts(heads, projection))
        drawn: dict[str, list[dict]] = {}
        for draw in range(self.controls):
            try:
                _, others = draw_controls(self.replies.model, heads, len(heads), seed=self.seed + draw)
            except DetectorError:
                break  # a model with hardly more heads than are masked has no controls
            for row in self._rows(self.replies.verdicts(others, projection)):
                if row["family"] == "all":
                    drawn.setdefault(row["measure"], []).append(row)
        for measure, of in drawn.items():
            values = [row["value"] for row in of]
            interval = (min(values), max(values))
            rows.append(measure_row(f"{measure}_control", "all", float(np.mean(values)), interval, of[0]["n"]))
        return rows

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


def run_prompts(run: xr.Dataset, prompts: Sequence[Prompt] | None = None) -> list[Prompt]:
    """The prompts of a run, in its order: those given, or made again from its record.

    Raises:
        DetectorError: If they cannot be made again, or are not those of the run.
    """
    if prompts is None:
        recipe = json.loads(run.attrs.get("prompt_source") or "{}")
        if not recipe:
            raise DetectorError(
                "The run does not say how to make its prompts again (they came from a file, or were filtered). Give "
                "them: prompts=..."
            )
        prompts = load_prompts(**recipe)
    prompts = prompts if isinstance(prompts, PromptSet) else PromptSet(prompts)
    by_id = {p.id: p for p in prompts}
    ids = [str(id_) for id_ in run["prompt"].values]
    if missing := [id_ for id_ in ids if id_ not in by_id]:
        raise DetectorError(
            f"These are not the prompts of the run: {len(missing)} of its {len(ids)} are not among the {len(prompts)} "
            f"given (first: {missing[0]!r})."
        )
    whole = [id_ for id_ in by_id if id_ in set(ids)] == ids and len(by_id) == len(ids)
    if whole and prompts.content_hash() != run.attrs.get("prompt_hash"):
        raise DetectorError(
            f"The prompts have the ids of the run's and other contents (hash {prompts.content_hash()}, the run's is "
            f"{run.attrs.get('prompt_hash')}). Give the very prompts that were swept."
        )
    return [by_id[id_] for id_ in ids]
