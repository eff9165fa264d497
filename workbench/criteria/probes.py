"""Trained probes: can a head's output alone tell unsafe prompts from safe ones?

One logistic regression a head on z, the head's output at the last prompt position before W_O, with scikit-learn's
defaults (C = 1, L2, features as they are). That SAHs probes this tensor is our reading: its code was not available.
A probe says what can be decoded, which need not be what the model uses.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from workbench.axes import head_name
from workbench.criteria.logistic import fit_logistic
from workbench.criteria.registry import TRAINED, Criterion
from workbench.errors import CriterionError
from workbench.prompts.ties import repeats, strata
from workbench.runs.pairs import tie_names
from workbench.runs.reading import check_run, prompt_coord, unsafe_mask

Features = Callable[[xr.Dataset], np.ndarray]
FOLDS = 5
REPEATS = 20  # draws of the few shots
SHOTS = 2  # prompts of each category, of each class
SAHS = (
    "SAHs, 'Spot Risks Before Speaking' (arXiv 2501.02029), one logistic regression a head; protocol of LVLM-LP "
    "(2403.09037)"
)


def fold_numbers(unsafe: np.ndarray, pairs: np.ndarray, *, folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """The fold in which each prompt is held out, [prompt]: balanced over labels, the prompts of a unit in one fold.

    `pairs` names the unit of each prompt (a pair, or prompts that ask the same), an empty string where it is alone.
    There are fewer folds where a class has fewer ties.
    """
    groups = strata(pairs, unsafe.tolist())
    for side in (True, False):
        folds = min(folds, sum(len(group) for group in groups if (unsafe[group[0]] == side).any()))
    rng = np.random.default_rng(seed)
    number = np.empty(len(unsafe), dtype=int)
    start = 0
    for group in groups:
        # Each stratum goes on where the last one stopped, so that the folds differ by one tie at most.
        for place, unit in enumerate(rng.permutation(len(group)), start):
            number[group[unit]] = place % folds
        start += len(group)
    return number


def cross_validated(features: np.ndarray, unsafe: np.ndarray, fold: np.ndarray, *, C: float = 1.0) -> np.ndarray:
    """Decision value of every prompt from the fold it was held out of.

    Args:
        features: [head, prompt, d].
        unsafe: [prompt].
        fold: [prompt], the fold in which a prompt is held out.
        C: As in scikit-learn.

    Returns:
        [head, prompt], log-odds, positive for unsafe.
    """
    names, number = np.unique(fold, return_inverse=True)
    train = (number != np.arange(len(names))[:, None]).astype(float)
    coef, intercept = fit_logistic(features, unsafe, weight=train, C=C)
    found = np.empty(features.shape[:2])
    for head, (one, of_head, at_zero) in enumerate(zip(features, coef, intercept, strict=True)):
        of_every_fold = one @ of_head.T + at_zero  # prompt, fold; in float64, whatever the features are stored in
        found[head] = of_every_fold[np.arange(len(number)), number]
    return found


def few_shot_masks(unsafe: np.ndarray, category: np.ndarray, *, shots: int, repeats: int, seed: int) -> np.ndarray:
    """Which prompts each repeat trains on, [repeat, prompt]: `shots` of every category of either class."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((repeats, len(unsafe)), dtype=bool)
    for side in (True, False):
        for name in sorted(set(category[unsafe == side])):
            members = np.flatnonzero((unsafe == side) & (category == name))
            for repeat in range(repeats):
                masks[repeat, rng.permutation(members)[:shots]] = True
    return masks


def _output(run: xr.Dataset) -> np.ndarray:
    """z, [layer, head, prompt, d_head], as it is stored: the fits widen it, a few heads at a time."""
    # Read first: xarray turns what it has not read yet element by element, which takes 25 times the memory.
    return run["head_output"].compute().transpose("layer", "head", "prompt", "d_head").values


def _write(run: xr.Dataset) -> np.ndarray:
    """z·R, [layer, head, prompt, d_head], R·Rᵀ = W_O·W_Oᵀ of the head.

    A penalised logistic regression sees its features through their inner products only, and those of z·R are those of
    what the head writes, z·W_O, which is d_model numbers wide and not stored: the decision values are the same.
    """
    z, root = _output(run), run["write_root"].transpose("layer", "head", "d_head", "d_root").values
    write = np.empty((*z.shape[:-1], root.shape[-1]), dtype=np.result_type(z, np.float32))
    for layer in range(len(z)):  # in float64, which all layers at once would take gigabytes for
        write[layer] = z[layer].astype(np.float64) @ root[layer]
    return write


def _computed(run: xr.Dataset, features_of: Features, criterion: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of the computed heads [head, prompt, d], and which cells [layer, head] they are."""
    z = features_of(run)
    cells = list(np.ndindex(z.shape[:2]))  # one at a time: z of a large run is gigabytes
    finite, absent = np.empty(z.shape[:2], dtype=bool), np.empty(z.shape[:2], dtype=bool)
    for cell in cells:
        finite[cell], absent[cell] = np.isfinite(z[cell]).all(), np.isnan(z[cell]).all()
    if (broken := ~finite & ~absent).any():
        layer, head = np.argwhere(broken)[0]
        raise CriterionError(
            f"Criterion {criterion!r}: its features hold NaN or infinite numbers for some prompts, first at "
            f"{head_name(int(run['layer'][layer]), int(run['head'][head]))}. The run is incomplete, or half "
            "precision overflowed: sweep again."
        )
    if absent.all():
        raise CriterionError(f"Criterion {criterion!r}: its features are missing for every head of this run.")
    # Without a copy where there is nothing to leave out.
    features = z[~absent] if absent.any() else z.reshape(-1, *z.shape[2:])
    if all((head == head[:1]).all() for head in features):
        raise CriterionError(
            f"Criterion {criterion!r}: its features are the same for all {features.shape[1]} prompts, so there is "
            "nothing to learn. Are the prompts the same to this model (images not passed on, text cut off)?"
        )
    return features, ~absent


def _as_array(run: xr.Dataset, decisions: np.ndarray, computed: np.ndarray) -> xr.DataArray:
    """Decisions [head, repeat, prompt] of the computed heads -> repeat, prompt, layer, head."""
    out = np.full((*computed.shape, *decisions.shape[1:]), np.nan)
    out[computed] = decisions
    coords = {"prompt": run["prompt"], "layer": run["layer"], "head": run["head"]}
    return xr.DataArray(out, dims=("layer", "head", "repeat", "prompt"), coords=coords).transpose(
        "repeat", "prompt", "layer", "head"
    )


def _few_shot(run: xr.Dataset, *, seed: int = 0) -> xr.DataArray:
    unsafe = unsafe_mask(run)
    features, computed = _computed(run, _output, "probe_few_shot")
    category = prompt_coord(run, "category")
    if set(category) == {""}:
        category = prompt_coord(run, "family")
    masks = few_shot_masks(unsafe, category, shots=SHOTS, repeats=REPEATS, seed=seed)
    seen = masks.copy()
    for members in repeats(prompt_coord(run, "content")):  # who trained on a question cannot be tested on it
        seen[:, members] = masks[:, members].any(1, keepdims=True)
    rest = ~seen
    if not (rest[:, unsafe].any(1) & rest[:, ~unsafe].any(1)).all():
        raise CriterionError(
            f"Criterion 'probe_few_shot' trains on {SHOTS} prompts of each category and tests on the others, and with "
            f"{len(set(category))} categories over {len(unsafe)} prompts nothing is left to test on. Sweep more "
            "prompts."
        )
    coef, intercept = fit_logistic(features, unsafe, weight=masks.astype(float))
    decisions = np.einsum("hnd,hrd->hrn", features, coef) + intercept[..., None]
    decisions[:, seen] = np.nan
    return _as_array(run, decisions, computed)


def _probe(name: str, features_of: Features, label: str, source: str = SAHS, **about: Any) -> Criterion:
    """The criterion of probes on some features, held out by folds; `about` are other parts of its record."""

    def values(run: xr.Dataset, *, seed: int = 0) -> xr.DataArray:
        unsafe = unsafe_mask(run)
        features, computed = _computed(run, features_of, name)
        fold = fold_numbers(unsafe, tie_names(run), seed=seed)
        return _as_array(run, cross_validated(features, unsafe, fold)[:, None], computed)

    def decide(run: xr.Dataset, train: np.ndarray) -> xr.DataArray:
        check_run(run, record.needs, wanted_by=f"Criterion {name!r}")
        features, computed = _computed(run, features_of, name)
        unsafe = prompt_coord(run, "label") == "unsafe"
        coef, intercept = fit_logistic(features, unsafe, weight=np.asarray(train, dtype=float))
        decisions = np.einsum("hnd,hd->hn", features, coef) + intercept[:, None]
        return _as_array(run, decisions[:, None], computed).isel(repeat=0)

    common = {
        "kind": TRAINED,
        "values": values,
        "needs": ("head_output",),
        "unit": "fraction correct",
        "decide": decide,
    }
    record = Criterion(**{"name": name, "label": label, "source": source, **common, **about})
    return record


CRITERIA = (
    _probe(
        "probe",
        _output,
        "Probe accuracy",
        direction="0 to 1, held-out (5 folds); 0.5 is chance for balanced classes; larger = the head's output tells "
        "the classes apart",
        quirks="Which tensor SAHs probes was not found; z before W_O is the usual reading. On easy pairs accuracy "
        "saturates and cannot rank heads: read AUROC, or test on harder negatives.",
    ),
    _probe(
        "probe_few_shot",
        _output,
        "Few-shot probe accuracy",
        SAHS + "; one or two shots a category",
        values=_few_shot,
        direction=f"0 to 1, on the prompts not trained on; {SHOTS} shots a category, mean over {REPEATS} seeded draws",
    ),
    _probe(
        "probe_write",
        _write,
        "Probe accuracy on the write",
        "this project, beside SAHs",
        needs=("head_output", "write_root"),
        direction="0 to 1, held-out (5 folds); as probe, on what the head writes to the residual stream, z·W_O",
        quirks="The same logistic regression, on z·R with the inner products of z·W_O (R is the run's write_root).",
    ),
)
