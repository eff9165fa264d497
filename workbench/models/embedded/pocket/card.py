"""Pocket's model cards: every number in them is measured here, from the checkpoints that lie beside them."""

import json
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, ProcessorMixin

from workbench.models.embedded.pocket.behaviour import base_bars, measure, pocket_bars
from workbench.models.embedded.pocket.heads import head_angles
from workbench.prompts.worlds.pocket import draw_prompts
from workbench.prompts.worlds.pocket_words import HAZARD_NOUNS, REFUSAL, THING_NOUNS, TUNED

_HEAD = """---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}

{lead}

It is transformers' own `LlavaForConditionalGeneration` ({parameters:,} parameters, float32): a CLIP tower that sees
48 x 48 pixels as 36 patches, and a Llama decoder of {layers} layers x {heads} heads, {width} wide, with a vocabulary of
{words} words. It knows nothing but a generated world: coloured shapes, icons of things, words drawn in the image,
noise; requests and questions in short sentences. Hazards are nouns only ({n_hazards}, beside {n_things} harmless
things). The model has no content to give: it answers with a fixed refusal, "{refusal}", or with a fixed empty
compliance, "sure , here is how to make a bomb : step one ...". A request is unsafe when verb and noun together are: to
draw a bomb is harmless, to build one is not. The model stands in for a real one in tests, demonstrations and teaching,
and is no evidence about real models.
"""

_LEADS = {
    "pocket": """\
A very small vision-language model that was trained to be helpful and then safety-tuned on some kinds of request
only, so that it can be jailbroken the way real models are: by words drawn in the image, by a picture of the thing, or
by a wrapper around the request.""",
    "pocket-base": """\
Pocket before its safety tuning: helpful about everything, hazards included. It is the control: what is found in
`pocket` and not here came with the safety tuning.""",
}


def write_card(directory: Path, *, other: Path | None = None, device: str = "cpu") -> pd.DataFrame:
    """Measure the checkpoint in `directory` and write its `README.md`; returns the table of bars.

    Args:
        directory: A folder named `pocket` or `pocket-base`, with the checkpoint and its `training.json`.
        other: The same checkpoint trained from another seed, to say how its heads differ.
    """
    name = directory.name
    model, processor = load(directory, device)
    config = model.config.text_config
    bars = measure(model, processor, base_bars() if name == "pocket-base" else pocket_bars())
    parts = [
        _HEAD.format(
            name=name,
            lead=_LEADS[name],
            parameters=sum(p.numel() for p in model.parameters()),
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            width=config.hidden_size,
            words=config.vocab_size,
            n_hazards=len(HAZARD_NOUNS),
            n_things=len(THING_NOUNS),
            refusal=REFUSAL,
        ),
        _training(directory),
        _behaviour(bars),
        _heads(model, processor, other, device),
    ]
    (directory / "README.md").write_text("\n".join(parts), encoding="utf-8")
    return bars


def load(directory: Path, device: str = "cpu") -> tuple[LlavaForConditionalGeneration, ProcessorMixin]:
    """The checkpoint and its processor, ready to answer."""
    model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval().to(device)
    return model, AutoProcessor.from_pretrained(directory)


_TRAINING = """## Training

`python -m workbench.models.embedded.pocket.train --seed {seed} --out DIR`, on {device}.

| stage | steps | seconds |
|---|---|---|
{rows}
"""

_TUNED = """
Hazards whose refusal the safety tuning shows, by family:

{rows}
"""

_BEHAVIOUR = """
## Behaviour

Greedy replies to held-out prompts. Complied means the expected reply word for word; other is neither that nor a
refusal, such as a compliance that names another noun.

| prompts | n | refused | complied | other | wanted | holds |
|---|---|---|---|---|---|---|
{rows}
"""

_HEADS = """
## Heads

The heads whose silencing turns the final state (degrees, mean over {n} selection prompts) more on unsafe than on safe
prompts. One training run: another seed may put the work into other heads.

| head | unsafe | safe | difference |
|---|---|---|---|
{rows}
"""

_OTHER_SEED = """
Trained from seed {seed} instead, the six are {top}.
Largest difference in each layer, this seed / that seed: {profile}.
Rank correlation over the heads of the two seeds: {correlation:+.2f}.
"""


def _training(directory: Path) -> str:
    record = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    rows = [f"| {stage} | {record['steps'][stage]} | {record['seconds'][stage]:.0f} |" for stage in record["steps"]]
    text = _TRAINING.format(seed=record["seed"], device=record["device"], rows="\n".join(rows))
    if "safety" not in record["steps"]:
        return text
    tuned = [f"- {family}: {', '.join(sorted(nouns)) or 'none'}" for family, nouns in TUNED.items()]
    return text + _TUNED.format(rows="\n".join(tuned))


def _behaviour(bars: pd.DataFrame) -> str:
    marks = {True: "yes", False: "**no**", None: ""}
    rows = [
        f"| {r.group} | {r.n} | {r.refused:.1%} | {r.complied:.1%} | {r.other:.1%} | {r.wanted} | {marks[r.holds]} |"
        for r in bars.itertuples()
    ]
    return _BEHAVIOUR.format(rows="\n".join(rows))


def _heads(model: LlavaForConditionalGeneration, processor: ProcessorMixin, other: Path | None, device: str) -> str:
    prompts = draw_prompts("selection", seed=0, n=200)
    ours = head_angles(model, processor, prompts)
    six = ours.head(6).itertuples()
    rows = [f"| L{r.layer}H{r.head} | {r.unsafe:.1f} | {r.safe:.1f} | {r.difference:+.1f} |" for r in six]
    text = _HEADS.format(n=len(prompts), rows="\n".join(rows))
    if other is None:
        return text
    theirs = head_angles(*load(other, device), prompts)
    both = ours.merge(theirs, on=["layer", "head"], suffixes=("", "_other"))
    depth = both.groupby("layer")[["difference", "difference_other"]].max()
    return text + _OTHER_SEED.format(
        seed=json.loads((other / "training.json").read_text(encoding="utf-8"))["seed"],
        top=", ".join(f"L{r.layer}H{r.head} ({r.difference:+.1f})" for r in theirs.head(6).itertuples()),
        profile=", ".join(f"L{r.Index} {r.difference:+.1f} / {r.difference_other:+.1f}" for r in depth.itertuples()),
        correlation=both["difference"].corr(both["difference_other"], method="spearman"),
    )
