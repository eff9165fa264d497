"""The words that go with the paper figures: what is shown, over how many prompts, under which mask, of which model."""

import html
import json
import re
from pathlib import Path

import pandas as pd
import xarray as xr

from workbench.axes import head_name
from workbench.plain import plain
from workbench.runs.reading import caveats_of
from workbench.views import charts
from workbench.views.charts import Picks

_MASKS = {
    ("query", "limit"): "attention made even over the positions the head may see",
    ("value", "limit"): "head output set to 0",
    ("query", "as_published"): "query weights × {factor:g} before any query norm, as published",
    ("value", "as_published"): "head output × {factor:g}, as published",
    ("query", "scale"): "queries × {factor:g}",
    ("value", "scale"): "head output × {factor:g}",
    ("key", "limit"): "keys set to 0 as the head sees them",
    ("key", "scale"): "keys × {factor:g} as the head sees them",
    ("value", "interchange"): "head output that of the prompt's matched twin",
    ("value", "mean"): "head output the mean over prompts, by kind of position",
    ("value", "resample"): "head output that of another prompt, drawn",
    ("value", "channels"): "head output × a factor of each channel",
    ("value", "direction"): "head output × {factor:g} along a direction, and {bias:g} along it added",
    ("query", "redirect"): "{bias:+g} added to scores of {source} keys",
}
_GRAINS = {"query_head": "one query head at a time", "kv_group": "one group of key and value heads at a time"}
_POSITIONS = {
    "all": "at every position",
    "after_image": "at every position after the picture",
    "image": "at the picture's positions",
    "last": "at the last position",
}


def literal(text: object) -> str:
    """Words of others for Markdown: shown as they are, and neither markup nor a link."""
    shown = re.sub(r"([\\`*_\[\]~|$@])", r"\\\1", html.escape(plain(text), quote=False))
    return shown.replace("://", ":\\//").replace("www.", "www\\.")


def _code(text: object) -> str:
    """Words of others inside a code span, where Python reads `\\x60` as the backtick that would end the span."""
    return re.sub(r"[`<>&]", lambda found: f"\\x{ord(found.group()):02x}", plain(text))


def counts(run: xr.Dataset) -> str:
    """`120 unsafe and 120 safe prompts`."""
    labels = pd.Series(run["label"].values).value_counts()
    return f"{labels.get('unsafe', 0)} unsafe and {labels.get('safe', 0)} safe prompts"


def over(run: xr.Dataset, scores: pd.DataFrame, projection: str | None = None) -> str:
    """The sentence with n, the model and the mask; n counts the prompts that were scored (one split, perhaps)."""
    model = literal(run.attrs.get("model", "an unnamed model"))
    about = scores.attrs
    n = f"{about['n_unsafe']} unsafe and {about['n_safe']} safe prompts" if "n_unsafe" in about else counts(run)
    split = f" of the split {literal(about['split'])}" if about.get("split", "all") != "all" else ""
    masked = "" if projection == "none" else f"; {literal(mask_words(run, projection))}"
    return f"{n}{split} put to {model}{masked}."


def mask_words(run: xr.Dataset, projection: str | None = None) -> str:
    """What the mask did to `projection` (without one: to all that were swept), or that the run does not say."""
    form = str(run.attrs.get("mask_form", ""))
    form = "channels" if form == "scale" and "mask_source" in run.attrs else form
    factor = float(pd.to_numeric(run.attrs.get("mask_factor", 0.0), errors="coerce"))
    source = plain(str(run.attrs.get("mask_source", "")))
    more = {"bias": float(pd.to_numeric(run.attrs.get("mask_bias", 0.0), errors="coerce")), "source": source}
    swept = [projection] if projection else [str(p) for p in run["projection"].values]
    said = [f"{p} mask: {_MASKS[p, form].format(factor=factor, **more)}" for p in swept if (p, form) in _MASKS]
    if not said:
        return "mask not recorded with the run"
    grain, positions = str(run.attrs.get("mask_grain", "query_head")), str(run.attrs.get("mask_positions", "all"))
    where = f"{_GRAINS.get(grain, plain(grain))}, {_POSITIONS.get(positions, plain(positions))}"
    return "; ".join([*said, f"masked {where}"])


def provenance(run: xr.Dataset) -> list[str]:
    """Lines that say where the numbers came from; what the run does not record is called `not recorded`."""

    def known(name: str) -> str:
        return literal(run.attrs.get(name, "")) or "not recorded"

    revision = f"revision {known('model_revision')}, " if run.attrs.get("model_revision") else ""
    weights = f"{revision}weights {known('weight_hash')}, {known('dtype')}"
    began = f"started {known('started')}, code {known('git_commit')}"
    return [
        f"- Model: {known('model')}, {weights}.",
        f"- Prompts: {counts(run)}, set {known('prompt_hash')}, from {_sources(run)}.",
        f"- Mask: {literal(mask_words(run))}.",
        f"- Run: engine {known('engine')}, seed {known('seed')}, {began}.",
    ]


def minded(run: xr.Dataset) -> list[str]:
    """Paragraphs on what is to be known of the prompts before a number on them is believed."""
    return [f"Mind: {literal(sentence)}.\n" for sentence in caveats_of(run)]


def _sources(run: xr.Dataset) -> str:
    named = sorted({str(s) for s in run["source"].values if str(s)}) if "source" in run.coords else []
    return ", ".join(map(literal, named)) or "sources not recorded"


def rebuild(run: xr.Dataset, folder: Path) -> str:
    """The command that draws the figures again from the stored run, and the call that makes the run again."""
    stored = Path(run.encoding.get("source") or "RUN.zarr").name
    try:
        asked = [f"{k}={v!r}" for k, v in json.loads(run.attrs["prompt_source"]).items() if v is not None]
    except (KeyError, TypeError, ValueError, AttributeError):
        asked = []
    prompts = f"wb.load_prompts({', '.join(asked)})" if asked else "prompts"
    mask = ", ".join(
        f"{name}={run.attrs[f'mask_{name}']!r}"
        for name in ("form", "factor", "grain", "positions", "phase", "bias", "seed")
        if f"mask_{name}" in run.attrs
    )
    if not str(run.attrs.get("mask_source", "prompts")).startswith("prompts"):
        mask += ", source=…"
    command = f"workbench figures {stored} --out {folder.name}"
    call = f'wb.sweep(wb.load_model({run.attrs.get("model", "")!r}), {prompts}, mask=wb.Mask({mask}), out="{stored}")'
    return f"Rebuild them from the stored run with `{_code(command)}`. The run again: `{_code(call)}`."


def picked(picks: Picks, scores: pd.DataFrame, *, criterion: str, projection: str) -> str:
    """Which heads the selectivity rule keeps, with their two means, or why it keeps none."""
    if not picks.selective:
        return f"none, since the selectivity rule keeps no head ({literal(picks.refused)})"
    cells = {c: charts.grid(scores, criterion=criterion, projection=projection, column=c) for c in ("unsafe", "safe")}
    return ", ".join(
        f"{head_name(*head)} ({cells['unsafe'][head]:.3g} on unsafe, {cells['safe'][head]:.3g} on safe)"
        for head in picks.selective
    )
