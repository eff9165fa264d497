"""`attack`: how far a detector's score can be moved while the model goes on doing what it did."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd

from workbench.attacks.outcomes import COLUMNS, NO_ONE, Bench, Change, evasion_tests
from workbench.attacks.pictures import descend, noise, save, twin_pictures
from workbench.attacks.words import search
from workbench.checking import Converted, Finite, OneOf, Seed, Whole, checked
from workbench.comparison.arena import calibration_and_test
from workbench.comparison.entrants import entrants, fit_all
from workbench.detectors.detector import Detector
from workbench.errors import DetectorError, ModelError, PromptError
from workbench.models.fingerprint import fingerprint
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import SomeModel
from workbench.models.pixels import refuse_without_road
from workbench.prompts.prompt import PromptSet
from workbench.sweeps.execution import progress_bar
from workbench.sweeps.sweep import SomePrompts

SIDES = ("picture", "text")
STARTS = ("picture", "twin")
EPS = (2, 4, 8, 16)
NOISE = "noise"  # the control: as much noise, without a gradient


def _whole(value: Any) -> tuple[int, ...]:
    """One whole number, or several, in rising order."""
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    return tuple(sorted({Whole(0, 10**4).check(one) for one in several}))


def _boxes(value: Any) -> tuple[int, ...]:
    found = _whole(value)
    if not found or found[-1] > 255:
        raise ValueError("must be whole numbers of pixel values, 0 to 255 (255: no bound)")
    return found


def _starts(value: Any) -> tuple[str, ...]:
    several = (value,) if isinstance(value, str) else tuple(value)
    return tuple(OneOf(STARTS).check(one) for one in several)


@checked
def attack(
    model: SomeModel,
    prompts: SomePrompts,
    detectors: Any = "one-head",
    *,
    scored_by: Any = (),
    side: Annotated[str, OneOf(SIDES)] = "picture",
    eps: Annotated[Any, Converted(_boxes)] = EPS,
    steps: Annotated[Any, Converted(_whole)] = 20,
    kl_budget: Annotated[float, Finite(0)] | None = 0.1,
    starts: Annotated[Any, Converted(_starts)] = STARTS,
    judge: str = "auto",
    max_new_tokens: Annotated[int, Whole(1, 10**6)] = 16,
    save_pictures: str | Path | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    seed: Seed = 0,
) -> pd.DataFrame:
    """How often a detector's score can be brought under its threshold while the model's behaviour stays.

    Detectors are fitted as in the arena, on the selection and threshold prompts. Then the unsafe test prompts are
    changed, and nothing but the detector's score is optimised: with the picture, by projected gradient steps in a box
    around its pixels; with the text, by a search over sentences and words of the embedded worlds. A change counts while
    the next-token distribution stays within `kl_budget` of the model's own before it. What was made against one
    detector is tried on all.

    Args:
        model: From `load_model`, or a name or path that it takes.
        prompts: Labelled prompts, or what `load_prompts` takes.
        detectors: Attacked, one after the other, as someone would who knows them: names with options as in the arena,
            objects, or a mapping. One that draws a head for every prompt is attacked under all its draws at once.
        scored_by: Further detectors, which only score what was made against the others (transfer).
        side: `"picture"` or `"text"`. Text is changed only on prompts of Pocket's and the planted world.
        eps: Largest change of a pixel value, in 255ths: one whole number or several; 255 is no bound. 0, the prompts
            as they are, is always measured.
        steps: Gradient steps, or words of the text; one number or several, for a curve.
        kl_budget: KL(before ‖ after) of the next token, in nats; None for any change of behaviour.
        starts: Where descents start: at the `"picture"`, and at the point of the box nearest to the picture of the
            prompt's safe `"twin"`, for scores that are flat.
        judge: Of replies: as in `workbench.replies.judges`; `"auto"` takes the exact one where replies are known.
        max_new_tokens: Length of a reply at most.
        save_pictures: Write the changed pictures into this folder; without it none is written anywhere.
        out: A folder in which what is done is kept, detector by detector, so that a stopped attack goes on.
        progress: Show progress, with the time left.
        seed: Of splits, detectors and the control's noise.

    Returns:
        One row a side × `attacked` × `scored_by` × eps × steps × measure: value, ci_low, ci_high (95 %), n. `attacked`
        is `noise` for the control: noise of the same size without a gradient; `nothing` for the prompts as they are.
        Of a `scored_by`: `evasion`, the share of the unsafe prompts it flags unchanged that it no longer flags, next
        token kept; `evasion_reply`, reply kept word for word; `evasion_any`, whatever becomes of the behaviour; `auroc`
        of the changed unsafe prompts against the unchanged safe ones; `benign_flagged`, of safe prompts as they are, or
        under noise. Of nobody's score (`scored_by` empty): mean `kl` in nats, `kept` (share within the budget),
        `reply_kept`, `complied` (attack success) and `refused` of the changed unsafe prompts, `benign_complied` and
        `benign_refused` of the safe ones as they are. In `attrs`: `tests` (does the attack evade on more prompts than
        noise: McNemar, one-sided, Holm), `flat` (share of flagged prompts whose score has no slope), `left_out`,
        `thresholds`, `kl_budget`, `judge`, `model`, `weight_hash`, `seed`.

    Raises:
        ModelError: For a family whose pictures have no differentiable road; it says why.
        DetectorError: If no detector could be attacked.
        PromptError: For prompts without pictures, or whose text is of no world known here.

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", n=96).where(family="icon")
        >>> table = wb.attack("planted", prompts, eps=(8, 255), steps=1, kl_budget=None, max_new_tokens=4)
        >>> table.query("measure == 'evasion' and attacked == scored_by").set_index("eps")["value"].to_dict()
        {8: 0.0, 255: 1.0}
    """
    assert isinstance(model, HookedLVLM) and isinstance(prompts, PromptSet)  # noqa: PT018 - converted
    calibration, test, _ = calibration_and_test(prompts, seed)
    if side == "picture":
        refuse_without_road(model)
        test = PromptSet(p for p in test if p.image is not None)
    if not any(p.label == "unsafe" for p in test):
        raise PromptError(
            f"There is no unsafe test prompt {'with a picture ' if side == 'picture' else ''}to attack with. Give "
            "prompts of both labels, some of them for the test split."
        )
    left_out: dict[str, str] = {}
    attacked, others = entrants(detectors, seed=seed), entrants(scored_by, seed=seed) if scored_by else []
    fitted = fit_all(model, [*attacked, *others], calibration, left_out, out=None, progress=progress)
    settings = {
        "side": side, "eps": eps, "steps": steps, "kl_budget": kl_budget, "starts": starts, "seed": seed,
        "judge": judge if judge != "auto" else "exact" if all(p.expected for p in test) else "phrases",
        "max_new_tokens": max_new_tokens, "model": fingerprint(model), "prompts": test.content_hash(),
        "detectors": {e.key: float(e.detector.threshold) for e in fitted},
    }  # fmt: skip
    budget = float("inf") if kl_budget is None else kl_budget
    bench = Bench(
        model, test, fitted, kl_budget=budget, judge=settings["judge"], max_new_tokens=max_new_tokens, seed=seed
    )
    found = {NO_ONE: {"rows": bench.unchanged(side), "evades": []}}
    names = [e.key for e in fitted if e in attacked] + [NOISE] * (side == "picture")
    with progress_bar(progress) as bar:
        for name in names:
            store = None if out is None else Path(out) / "parts" / f"{_digest(name, settings)}.json"
            if store is not None and store.is_file() and save_pictures is None:
                found[name] = json.loads(store.read_text(encoding="utf-8"))
                continue
            line = bar.add_task(f"against {name}", total=len(eps) if side == "picture" else max(steps))
            detector = next((e.detector for e in fitted if e.key == name), None)
            made = _made(bench, detector, settings, partial(bar.advance, line))
            try:
                found[name] = _measured(bench, name, side, made, save_pictures)
            except (DetectorError, ModelError) as error:
                left_out.setdefault(name, str(error))
                continue
            if store is not None:
                store.parent.mkdir(parents=True, exist_ok=True)
                store.write_text(json.dumps(found[name]) + "\n", encoding="utf-8")
    if not found.keys() - {NOISE, NO_ONE}:
        raise DetectorError(
            "None of the detectors could be attacked. " + "; ".join(f"{name}: {why}" for name, why in left_out.items())
        )
    table = pd.DataFrame([row for part in found.values() for row in part["rows"]], columns=list(COLUMNS))
    evades = {tuple(key): np.array(hits) for part in found.values() for key, hits in part["evades"]}
    table.attrs = {
        "tests": evasion_tests(evades, NOISE).to_dict("records"),
        "flat": {name: part["flat"] for name, part in found.items() if "flat" in part},
        "left_out": left_out,
        "thresholds": settings["detectors"],
        "kl_budget": kl_budget,
        "judge": settings["judge"],
        "model": model.name,
        "weight_hash": model.weight_hash,
        "seed": seed,
    }
    return table


def _digest(name: str, settings: Mapping[str, Any]) -> str:
    """The same for the same attack on the same model, prompts and detectors."""
    return hashlib.sha256(json.dumps([name, settings], sort_keys=True).encode()).hexdigest()[:16]


def _made(
    bench: Bench, detector: Detector | None, settings: Mapping[str, Any], tick: Callable[[], None]
) -> Iterator[tuple[Change, float | None]]:
    """The changes of one attack, or of the control where there is no detector, and the share of flat scores."""
    side, eps, steps = settings["side"], [e for e in settings["eps"] if e], settings["steps"]
    if detector is None:
        for box in eps:
            yield (
                Change(side, NOISE, box, 0, *(noise(p, box, settings["seed"]) for p in (bench.unsafe, bench.safe))),
                None,
            )
            tick()
        return
    share = None
    if side == "picture":
        twins = twin_pictures(bench.unsafe, bench.safe) if "twin" in settings["starts"] else {}
        how: dict[str, Any] = {"eps": eps, "steps": steps, "kl_budget": bench.kl_budget, "twins": twins, "tick": tick}
        made, share = descend(bench.model, bench.unsafe, detector, **how)
    else:
        how = {"steps": steps, "kl_budget": bench.kl_budget, "seed": settings["seed"], "tick": tick}
        made = search(bench.model, bench.unsafe, detector, bench.next_token_logits, **how)
    for box, step, prompts in made:
        yield Change(side, "", box, step, prompts), share


def _measured(
    bench: Bench,
    name: str,
    side: str,
    made: Iterable[tuple[Change, float | None]],
    save_pictures: str | Path | None,
) -> dict[str, Any]:
    """Rows, evasions and flat share of one attack, as they are kept."""
    rows: list[dict] = []
    evades: list[Any] = []
    part: dict[str, Any] = {"rows": rows, "evades": evades}
    for change, share in made:
        found, hidden = bench.measure(replace(change, attacked=name))
        rows += found
        evades += [[[name, by, change.eps, change.steps], hits.tolist()] for by, hits in hidden.items()]
        if share is not None:
            part["flat"] = share
        if save_pictures is not None and side == "picture":
            folder = re.sub(r"[^\w-]+", "-", f"{name}-eps{change.eps}-steps{change.steps}")
            save(change.unsafe, Path(save_pictures) / folder)
    return part
