"""What the explorer shows of a stored run: maps, ranks, values on every prompt, and what is known of the prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.axes import Head
from workbench.criteria import score
from workbench.criteria.ranking import ranked, scored_rows
from workbench.criteria.redraws import stability
from workbench.criteria.registry import PER_PROMPT, Criterion, get_rule, list_criteria, list_rules
from workbench.criteria.rules import SAFE_PERCENTILE
from workbench.criteria.values import prompt_values
from workbench.errors import CriterionError
from workbench.plain import plain
from workbench.prompts.prompt import Prompt
from workbench.runs.reading import caveats_of, prompt_coord
from workbench.views import charts, theme
from workbench.views.explorer.packing import Packed
from workbench.views.figures import captions

COLUMNS = (*theme.COLUMN_WORDS, "ci_low", "ci_high", "q_value")
TAGS = ("label", "source", "family", "category", "split", "variant")
PROVENANCE = (
    "model", "revision", "weight_hash", "prompt_hash", "mask_form", "mask_factor", "mask_grain", "mask_positions",
    "engine", "dtype", "attention", "seed", "schema", "git_commit", "started",
)  # fmt: skip
_NOWHERE = 65535  # in place of a value that is NaN


@dataclass(repr=False)
class Stored:
    """One run as the explorer shows it.

    Attributes:
        run: Read at one layer.
        scores: Its score table; criteria are added to it as they are asked for.
        label: What the run is called where several are shown.
        prompts: By id; empty where they are not at hand.
    """

    run: xr.Dataset
    scores: pd.DataFrame
    label: str
    prompts: Mapping[str, Prompt]

    def __repr__(self) -> str:
        return f"Stored({self.label!r}, {self.run.sizes['prompt']} prompts)"

    @property
    def shape(self) -> tuple[int, int]:
        """How many layers, and heads of a layer, the score table has."""
        return int(self.scores["layer"].max()) + 1, int(self.scores["head"].max()) + 1

    def about(self, *, texts: int) -> dict[str, Any]:
        """What the browser is told about the run, apart from arrays.

        Args:
            texts: How many letters of each prompt's text are shown at the most; 0 leaves them out.
        """
        run = self.run
        where = f"{run.sizes['layer']} layers × {run.sizes['head']} heads, {captions.counts(run)}"
        ids = [str(i) for i in run["prompt"].values]
        said = [plain(self.prompts[i].text, keep="\n\t")[:texts] if i in self.prompts else "" for i in ids]
        return {
            "label": plain(self.label),
            "about": f"{where}. {captions.mask_words(run)}.",
            "split": str(self.scores.attrs.get("split", "")),
            "caveats": [plain(sentence) for sentence in caveats_of(run)],
            "grain": str(run.attrs.get("mask_grain", "query_head")),
            "projections": [str(p) for p in run["projection"].values],
            "layers": self.shape[0],
            "heads": self.shape[1],
            "criteria": self.criteria(),
            "provenance": {
                name: plain(run.attrs[name]) for name in PROVENANCE if run.attrs.get(name) not in (None, "")
            },
            "prompts": {"id": ids} | {tag: [plain(v) for v in prompt_coord(run, tag)] for tag in TAGS},
            "texts": said if texts and any(said) else None,
        }

    def criteria(self) -> list[dict[str, Any]]:
        """Those of the score table, then those that the run could be scored by."""
        scored = list(dict.fromkeys(self.scores["criterion"]))
        there = set(self.run.data_vars)
        others = [c.name for c in list_criteria() if c.name not in scored and set(c.needs) <= there]
        return [self._criterion(name) for name in (*scored, *others)]

    def _criterion(self, name: str) -> dict[str, Any]:
        record = theme.record(name)
        rows = self.scores[self.scores["criterion"] == name]
        return {
            "name": plain(name),
            "title": theme.title(name),
            "unit": theme.unit(name),
            "kind": record.kind if record else "",
            "direction": record.direction if record else "",
            "source": record.source if record else "",
            "rules": [r.name for r in list_rules() if not r.is_control and record and record.kind in r.kinds],
            "projections": [str(p) for p in dict.fromkeys(rows["projection"])],
            "scored": bool(len(rows)),
            # Whether values of single prompts are as strong as they are large, which a threshold on them takes.
            "larger": bool(record and record.kind == PER_PROMPT and np.array_equal(record.strength(_TRY), _TRY)),
        }

    def pack_scores(
        self, packed: Packed, place: int, names: list[str] | None = None, *, rule: str = "", k: int = 5
    ) -> None:
        """Every column of the score table as maps, with their colour scales, and the ranks under every rule.

        Args:
            packed: Gets the arrays.
            place: Of this run among those shown.
            names: The criteria; all of the table by default.
            rule: The rule whose stability is computed now; `"*"` for every rule.
            k: How many heads are first.
        """
        pairs = self.scores[["criterion", "projection"]].drop_duplicates()
        for criterion, projection in pairs.itertuples(index=False):
            if names is not None and criterion not in names:
                continue
            key, where = f"{place}/{criterion}/{projection}", {"criterion": criterion, "projection": projection}
            for column in COLUMNS:
                if column in self.scores:
                    cells = charts.grid(self.scores, **where, column=column)
                    packed.add(f"{key}/{column}", cells.astype(np.float32))
                    if column in theme.COLUMN_WORDS:
                        packed.scale(
                            f"{key}/{column}", charts.scale(cells, column=column), theme.unit(criterion, column)
                        )
            record = theme.record(criterion)
            for known in list_rules():
                if record and not known.is_control and record.kind in known.kinds:
                    packed.add(f"{key}/rank/{known.name}", self.ranks(record, projection, known.name))
                    if known.name == rule or rule == "*":
                        stable = self.stability(criterion, projection, known.name, k)
                        packed.add(f"{key}/stable/{known.name}/{k}", stable)

    def ranks(self, record: Criterion, projection: str, rule: str) -> np.ndarray:
        """Rank of every head under a rule, 1 = best, [layer, head] uint16; 0 where the rule leaves it out."""
        found = self._empty(np.uint16)
        try:
            rows, _ = scored_rows(self.scores, record, projection)
        except CriterionError:  # none of its heads was computed
            return found
        kept = ranked(rows, record, rule)
        found[kept["layer"].to_numpy(int), kept["head"].to_numpy(int)] = np.arange(1, len(kept) + 1)
        return found

    def stability(self, criterion: str, projection: str, rule: str, k: int) -> np.ndarray:
        """Share of redraws of the prompts in which each head is among the first k, percent; 255 where unknown."""
        found, record = self._empty(np.uint8, 255), theme.record(criterion)
        try:
            rows, _ = scored_rows(self.scores, record, projection) if record else (None, "")
        except CriterionError:
            return found
        if rows is not None and record and get_rule(rule).name in record.rules:
            share = stability(self.scores, rows, get_rule(rule), k=k, percentile=SAFE_PERCENTILE).to_numpy()
            known = ~np.isnan(share)
            at = rows["layer"].to_numpy(int)[known], rows["head"].to_numpy(int)[known]
            found[at] = np.rint(100 * share[known])
        return found

    def _empty(self, kind: type, fill: int = 0) -> np.ndarray:
        return np.full(self.shape, fill, dtype=kind)

    def add_criterion(self, name: str) -> None:
        """Score the run by one more criterion."""
        more = score(self.run, name)
        both = pd.concat([self.scores, more], ignore_index=True)
        both.attrs = {**self.scores.attrs, "redraws": _joined(self.scores, more)}
        self.scores = both
        self.__dict__.pop("per_prompt", None)

    @cached_property
    def per_prompt(self) -> list[str]:
        """Criteria of the table with a value on every prompt."""
        known = {c.name: c for c in list_criteria() if c.kind == PER_PROMPT}
        there = set(self.run.data_vars)
        return [c for c in dict.fromkeys(self.scores["criterion"]) if c in known and set(known[c].needs) <= there]

    def values_bytes(self) -> int:
        """How much room the values of all heads on all prompts take in the browser."""
        cells = self.run.sizes["layer"] * self.run.sizes["head"] * self.run.sizes["projection"]
        return 2 * self.run.sizes["prompt"] * cells * len(self.per_prompt)

    def pack_values(self, packed: Packed, place: int, criterion: str, head: Head | None = None) -> None:
        """Values on every prompt of all heads, or of one, as 16 bit steps between each head's least and most."""
        record = theme.record(criterion)
        assert record is not None
        part = self.run if head is None else self.run.sel(layer=[head[0]], head=[head[1]])
        try:
            values = prompt_values(part, record)
        except CriterionError:  # a head that was not swept
            return
        values = values.reindex(prompt=self.run["prompt"].values)  # prompts without a meaning for it are NaN
        for number, projection in enumerate(values["projection"].values):
            cells = np.moveaxis(values.values[:, number], 0, -1)
            key = f"{place}/{criterion}/{projection}/values"
            if head is not None:
                packed.add(f"{key}/{head[0]}/{head[1]}", cells[0, 0].astype(np.float32))
                continue
            whole = np.full((*self._empty(np.uint8).shape, cells.shape[-1]), np.nan)
            whole[np.ix_(values["layer"].values.astype(int), values["head"].values.astype(int))] = cells
            steps, low, high = quantised(whole)
            for name, array in (("", steps), ("/low", low), ("/high", high)):
                packed.add(key + name, array)


def quantised(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values as 16 bit steps between the least and the most of their last axis, which is at most 1/65534 of it off."""
    known = np.isfinite(cells)
    some = known.any(-1)
    low = np.where(some, np.min(cells, axis=-1, where=known, initial=np.inf), np.nan)
    high = np.where(some, np.max(cells, axis=-1, where=known, initial=-np.inf), np.nan)
    span = np.where(high > low, high - low, 1.0)
    steps = np.where(
        known, np.rint((np.nan_to_num(cells) - np.nan_to_num(low)[..., None]) / span[..., None] * 65534), _NOWHERE
    )
    return steps.astype(np.uint16), low.astype(np.float32), high.astype(np.float32)


def _joined(scores: pd.DataFrame, more: pd.DataFrame) -> Any:
    """What both tables keep of redraws, so that ranks of both keep their stability."""
    old, new = (table.attrs.get("redraws") for table in (scores, more))
    if new is None or not hasattr(old, "drawn"):
        return old if new is None else new
    return type(new).of({**old.drawn, **new.drawn}, int(more.attrs["seed"]))


_TRY = np.array([0.2, 0.9])
