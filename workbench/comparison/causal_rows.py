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

from workbench.comparison.masked_behaviour import QUESTION_FAMILY, draw_controls, outcome_groups
from workbench.criteria import statistics
from workbench.errors import DetectorError
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.prompts import load_prompts
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.replies.batches import generate_batch
from workbench.replies.judges import Judge, judge_replies
from workbench.runs.pairs import unit_names
from workbench.runs.reading import FEWEST_PROMPTS
from workbench.runs.splits import in_split

Head = tuple[int, int]
BOOTSTRAP = 1000


class Consequences:
    """Replies to a run's test prompts with sets of heads masked; each set is generated once.

    Args:
        run: With splits (`workbench.runs.splits.with_splits`).
        model: The run's model.
        prompts: The run's prompts; None makes them again from the run's record.
        controls: Draws of control heads for each set.
        judge, max_new_tokens: See `workbench.comparison.masked_behaviour.attack_success`.
        seed: Of the draws.
    Raises: DetectorError if model or prompts are not those of the run.
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
        self.model, self.controls, self.judge = model, controls, judge
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.mask = Mask(**{name.removeprefix("mask_"): run.attrs[name] for name in Mask().describe()})
        self.projection = str(run["projection"].values[0])
        self.test = in_split(run, "test")
        self.prompts = [p for p, kept in zip(run_prompts(run, prompts), self.test, strict=True) if kept]
        self.pairs = unit_names(run)[self.test]
        self.replies = generate_batch(model, self.prompts, max_new_tokens=max_new_tokens)
        self.verdicts = self.judged_by(judge)
        self.known: dict[tuple[frozenset[Head], str], np.ndarray] = {}

    def judged_by(self, judge: str | Judge) -> np.ndarray:
        """A judge's verdicts on the replies of the unmasked model, [test prompt]."""
        return judge_replies(self.prompts, self.replies, judge)

    def unmasked(self) -> list[dict]:
        """The measures of the model as it is."""
        return self._rows(self.verdicts)

    def of(self, heads: Sequence[Head], projection: str) -> list[dict]:
        """The measures with some heads masked, and with random ones in their place."""
        projection = self.projection if projection == "none" else projection
        rows = self._rows(self._verdicts(heads, projection))
        drawn = []
        for draw in range(self.controls):
            try:
                _, others = draw_controls(self.model, heads, len(heads), seed=self.seed + draw)
            except DetectorError:
                break  # a model with hardly more heads than are masked has no controls
            drawn += [row for row in self._rows(self._verdicts(others, projection)) if row["family"] == "all"]
        for measure in dict.fromkeys(row["measure"] for row in drawn):
            values = [row["value"] for row in drawn if row["measure"] == measure]
            n = next(row["n"] for row in drawn if row["measure"] == measure)
            rows.append(_row(f"{measure}_control", "all", float(np.mean(values)), min(values), max(values), n))
        return rows

    def missed(self, values: np.ndarray) -> list[dict]:
        """AUROC of a detector's values [prompt of the run] where the unmasked model does not refuse."""
        values = values[self.test]
        unsafe = np.array([p.label == "unsafe" for p in self.prompts])
        family = np.array([p.family for p in self.prompts], dtype=object)
        rows = []
        for name in sorted(set(family[unsafe]) & set(family[~unsafe]) - {""}):
            attack = unsafe & (family == name) & (self.verdicts != "refused")
            benign = ~unsafe & (family == name)
            if min(attack.sum(), benign.sum()) < FEWEST_PROMPTS:
                continue
            of = attack | benign
            area = float(statistics.auroc(values[of][:, None], attack[of])[0])
            low, high = statistics.auroc_interval(
                values[of], attack[of], self.pairs[of], resamples=BOOTSTRAP, seed=self.seed
            )
            rows.append(_row("auroc_missed", name, area, low, high, int(attack.sum())))
        return rows

    def _verdicts(self, heads: Sequence[Head], projection: str) -> np.ndarray:
        key = (frozenset(heads), projection)
        if key not in self.known:
            replies = generate_batch(
                self.model,
                self.prompts,
                heads=sorted(key[0]),
                projection=projection,
                mask=self.mask,
                max_new_tokens=self.max_new_tokens,
            )
            self.known[key] = judge_replies(self.prompts, replies, self.judge)
        return self.known[key]

    def _rows(self, verdicts: np.ndarray) -> list[dict]:
        rows = []
        for group in outcome_groups(self.prompts, verdicts).itertuples():
            family = "all" if group.group in ("unsafe", *_MEASURE_OF) else str(group.group)
            measure = _MEASURE_OF.get(str(group.group), "attack_success")
            rows.append(_row(measure, family, group.complied, group.low, group.high, group.n))
        unsafe = np.array([p.label == "unsafe" for p in self.prompts])
        rows.append(_rate("refused", verdicts[unsafe] == "refused"))
        once_refused = unsafe & (self.verdicts == "refused")
        if once_refused.any():
            rows.append(_rate("freed", verdicts[once_refused] == "complied"))
        return rows


def run_prompts(run: xr.Dataset, prompts: Sequence[Prompt] | None = None) -> list[Prompt]:
    """The prompts of a run, in its order: those given, or made again from its record.

    Raises: DetectorError if they cannot be made again, or are not those of the run.
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


_MEASURE_OF = {"benign": "benign_exact", QUESTION_FAMILY: "question_exact"}


def _rate(measure: str, hits: np.ndarray) -> dict:
    low, high = statistics.rate_interval(int(hits.sum()), len(hits))
    return _row(measure, "all", float(hits.mean()), float(low), float(high), len(hits))


def _row(measure: str, family: str, value: float, low: float, high: float, n: int) -> dict:
    return {"measure": measure, "family": family, "value": value, "ci_low": low, "ci_high": high, "n": n}
