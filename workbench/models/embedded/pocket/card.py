"""Pocket's model cards: every number in them is measured here, from the checkpoints that lie beside them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment
from transformers import AutoProcessor, LlavaForConditionalGeneration, ProcessorMixin

from workbench.models.embedded.pocket.behaviour import base_bars, measure, pocket_bars
from workbench.models.embedded.pocket.heads import head_angles
from workbench.prompts.worlds.pocket import draw_prompts
from workbench.prompts.worlds.pocket_words import HAZARD_NOUNS, REFUSAL, THING_NOUNS, TUNED

TEMPLATE = Path(__file__).with_name("card.md.jinja")


def write_card(directory: Path, *, other: Path | None = None, device: str = "cpu") -> pd.DataFrame:
    """Measure the checkpoint in `directory` and write its `README.md`; returns the table of bars.

    Args:
        directory: A folder named `pocket` or `pocket-base`, with the checkpoint and its `training.json`.
        other: The same checkpoint trained from another seed, to say how its heads differ.
    """
    model, processor = load(directory, device)
    bars = measure(model, processor, base_bars() if directory.name == "pocket-base" else pocket_bars())
    prompts = draw_prompts("selection", seed=0, n=200)
    heads = head_angles(model, processor, prompts)
    card = Environment(trim_blocks=True, keep_trailing_newline=True, autoescape=False).from_string(  # no HTML
        TEMPLATE.read_text(encoding="utf-8")
    )
    text = card.render(
        name=directory.name,
        parameters=sum(p.numel() for p in model.parameters()),
        config=model.config.text_config,
        n_hazards=len(HAZARD_NOUNS),
        n_things=len(THING_NOUNS),
        refusal=REFUSAL,
        record=training_record(directory),
        tuned=TUNED,
        bars=list(bars.itertuples()),
        marks={True: "yes", False: "**no**", None: ""},
        percent="{:.1%}".format,
        n_prompts=len(prompts),
        heads=list(heads.itertuples()),
        other=other and _beside(heads, head_angles(*load(other, device), prompts), other),
    )
    (directory / "README.md").write_text(text, encoding="utf-8")
    return bars


def load(directory: Path, device: str = "cpu") -> tuple[LlavaForConditionalGeneration, ProcessorMixin]:
    """The checkpoint and its processor, ready to answer."""
    model = LlavaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval().to(device)
    return model, AutoProcessor.from_pretrained(directory)


def training_record(directory: Path) -> dict[str, Any]:
    """Seed, device, steps and seconds of a checkpoint's training."""
    return json.loads((directory / "training.json").read_text(encoding="utf-8"))


def _beside(ours: pd.DataFrame, theirs: pd.DataFrame, other: Path) -> dict[str, Any]:
    """How the heads of another seed differ."""
    both = ours.merge(theirs, on=["layer", "head"], suffixes=("", "_other"))
    depth = both.groupby("layer")[["difference", "difference_other"]].max()
    return {
        "seed": training_record(other)["seed"],
        "heads": list(theirs.itertuples()),
        "depth": list(depth.itertuples()),
        "correlation": both["difference"].corr(both["difference_other"], method="spearman"),
    }
