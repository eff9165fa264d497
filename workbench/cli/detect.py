"""What `workbench compare`, `detect` and `generate` do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.text import Text

from workbench.cli.masks import heads_from, mask_from
from workbench.cli.named import Named, loaded
from workbench.cli.printing import say
from workbench.cli.prompts import Asked, chosen, say_caveats
from workbench.comparison.arena_tables import arena_tables
from workbench.comparison.breakdown import compare, save_breakdown
from workbench.comparison.differences import differences_of
from workbench.comparison.findings import findings
from workbench.comparison.tables import graded_table, ingredients_table, left_out_table, measures_table
from workbench.criteria.detection import leave_one_family_out
from workbench.detectors import DETECTORS, load_detector, make_detector
from workbench.detectors.calibration import stand_ins
from workbench.detectors.detector import Detector
from workbench.detectors.evaluation import graded_scores, score_measures, unseen
from workbench.detectors.one_head import OneHeadDetector
from workbench.detectors.stored import DESCRIPTION
from workbench.errors import DetectorError
from workbench.plain import check_writable, plain
from workbench.prompts.caveats import caveats
from workbench.prompts.pictures import open_picture
from workbench.prompts.prompt import Prompt, PromptSet
from workbench.prompts.splits import split_prompts
from workbench.replies.guarded import Reply, generate
from workbench.runs.opening import open_run
from workbench.runs.reading import caveats_of
from workbench.runs.splits import in_split, with_splits

COSTED = 8  # prompts on which the cost of a stored detector is measured
PIPE_WIDTH = 180


def compare_command(
    console: Console,
    run: str,
    *,
    model: str | Named | None = None,
    prompts: str | Asked | None = None,
    judges: Sequence[str] = ("exact",),
    out: Path | None = None,
    seed: int = 0,
    **given: Any,
) -> pd.DataFrame:
    """Print the breakdown of a stored run, and store it where asked; with a model also what masking the heads does.

    The first of `judges` decides what counts as an answer; with a second one, their agreement is printed. `given` is
    for `compare`.
    """
    if out is not None:
        check_writable(out)
    stored = open_run(run)
    found = compare(
        stored,
        None if model is None else loaded(model),
        prompts=None if prompts is None else chosen(prompts, seed),
        judges=judges,
        progress=not console.quiet,
        seed=seed,
        **given,
    )
    _widen(console)
    say_caveats(console, caveats_of(stored))
    for table in [*arena_tables(found, width=console.width), ingredients_table(differences_of(found))]:
        console.print(table)
    splits, agreement = found.attrs["splits"], found.attrs.get("agreement")
    say(console, f"Splits: {splits}. Intervals are 95 % and stand in the table that --out writes.", "dim")
    for sentence in findings(found):
        say(console, f"- {sentence}")
    if agreement is not None:
        say(console, "- {} and {} agree on {rate:.0%} of {n} replies, kappa {kappa:.2f}.".format(*judges, **agreement))
    for name, why in found.attrs["left_out"].items():
        say(console, f"Left out: {name}: {why}", "dim")
    if out is not None:
        for path in save_breakdown(found, out):
            say(console, f"Written: {path}")
    return found


def detect_command(
    console: Console,
    source: str,
    *,
    model: str | Named | None = None,
    prompts: str | Asked | None = None,
    projection: str = "query",
    criterion: str = "deflection",
    rule: str = "selectivity",
    k: int = 1,
    bootstrap: int = 1000,
    save: Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Test a detector by family and category, with graded scores.

    `source` is a stored run (a one-head detector is fitted on its selection and threshold prompts and tested on its
    test prompts, without the model); or a stored detector, or the name of one that is to be fitted, which need `model`
    and `prompts` (tested is their test split, if declared).
    """
    detector: Detector
    asked: Sequence[Prompt]
    _widen(console)
    if source in DETECTORS or (Path(source) / DESCRIPTION).is_file():
        if model is None or prompts is None:
            raise DetectorError("A detector that is no stored run is tested on prompts: give --model and --prompts.")
        given, whose = chosen(prompts, seed), loaded(model)
        say_caveats(console, caveats(given))
        if source in DETECTORS:
            if not any(p.split for p in given):
                given = PromptSet(p for part in split_prompts(given, seed=seed).values() for p in part)
            detector = make_detector(source, seed=seed).fit(whose, given, progress=not console.quiet)
        else:
            detector = load_detector(source)
        asked = unseen(detector, given.where(split="test") or given)
        scores = detector.decision_function(whose, asked)
        cost = detector.cost(whose, asked[:COSTED])
        say(
            console,
            f"Cost: {cost.forward_passes:.2f} forward passes and {1000 * cost.detect_s:.0f} ms a prompt, "
            f"{cost.latency_ratio:.2f} of a plain reply (median of {cost.n_prompts})",
        )
    elif model is not None:
        raise DetectorError(
            f"{plain(source)} is neither a detector to fit ({', '.join(DETECTORS)}) nor the folder of a stored one. "
            "Without --model, SOURCE is a stored run."
        )
    else:
        stored, splits = with_splits(open_run(source), seed=seed)
        head: dict[str, Any] = {"projection": projection, "criterion": criterion, "rule": rule}
        one_head = OneHeadDetector(**head, k=k, seed=seed).fit_run(stored)
        tested = stored.isel(prompt=in_split(stored, "test").nonzero()[0])
        detector, asked, scores = one_head, stand_ins(tested), one_head.stored_scores(tested)
        say(console, f"Splits: {splits}.", "dim")
        say_caveats(console, caveats_of(stored))
        without = leave_one_family_out(stored, **head, bootstrap=bootstrap, seed=seed)
        console.print(left_out_table(without))
        for why in without.attrs["left_out"]:
            say(console, why, "dim")
    say(console, str(detector))
    measures = score_measures(scores, asked, detector.threshold, bootstrap=bootstrap, seed=seed)
    console.print(measures_table(measures))
    console.print(graded_table(graded_scores(scores, asked, detector.threshold)))
    if save is not None:
        say(console, f"Written: {detector.save(save)}")
    return measures


def generate_command(
    console: Console,
    text: str,
    *,
    model: str | Named,
    image: Path | None = None,
    heads: str | None = None,
    projection: Literal["query", "key", "value"] | None = None,
    form: str = "limit",
    factor: float = 0.0,
    positions: str = "all",
    phase: str | None = None,
    twin: str | None = None,
    mask_source: str | None = None,
    bias: float = 0.0,
    guard: str | None = None,
    max_new_tokens: int = 32,
    on_error: Literal["raise", "refuse"] = "raise",
    show_unguarded: bool = False,
) -> str:
    """Print the reply to one prompt as it is decoded; with a guard, a refusal of what the guard flags."""
    prompt = Prompt(id="asked", text=text, image=None if image is None else open_picture(image))
    source: Any = mask_source if twin is None else replace(prompt, id="twin", text=twin)
    mask = mask_from(form=form, factor=factor, positions=positions, phase=phase, source=source, bias=bias)

    def write(piece: str) -> None:
        console.print(Text(plain(piece, keep="\n\t")), end="", soft_wrap=True)

    reply = generate(
        loaded(model),
        prompt,
        heads=heads_from(heads) if heads else (),
        projection=projection or mask.projections[0],
        mask=mask if heads else None,
        guard=None if guard is None else load_detector(guard),
        max_new_tokens=max_new_tokens,
        on_error=on_error,
        show_unguarded=show_unguarded,
        stream=write,
    )
    console.print()
    if isinstance(reply, Reply):
        told = {True: "flagged", False: "not flagged", None: "detection failed, refused"}[reply.flagged]
        say(console, f"Guard: {told}; score {reply.score:.4g}, threshold {reply.threshold:.4g}", "dim")
        if reply.error:
            say(console, reply.error, "dim")
        if reply.unguarded is not None:
            say(console, f"Without the guard: {reply.unguarded}")
    return reply


def _widen(console: Console) -> None:
    """A file or a pipe has no width of its own; rich would fold the tables to 80 columns."""
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
