"""Train Pocket from a seed: `python -m workbench.models.embedded.pocket.train --seed 0 --out DIR`.

The vision tower first learns to tell pictures apart, as CLIP would have. The language model then learns its sentences
from captions alone, which spares it a long plateau, after that from pixels, and last from more questions than requests,
since colours come late: this is `pocket-base`, helpful about everything. Safety tuning on some families and some nouns
makes it `pocket`.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from workbench.models.embedded.pocket.batches import (
    NOUNS,
    PICTURE_KINDS,
    Batch,
    SafetyMix,
    helpful_ask,
    make_batch,
    picture_batch,
    safety_ask,
)
from workbench.models.embedded.pocket.card import load, write_card
from workbench.models.embedded.pocket.config import build_model, save_checkpoint
from workbench.prompts.worlds.pocket_words import COLOURS, SHAPES, VERBS

STEPS = {"vision": 2600, "captions": 400, "helpful": 1300, "questions": 350, "safety": 700}
RATES = {"vision": 1.5e-3, "captions": 1e-3, "helpful": 1e-3, "questions": 5e-4, "safety": 5e-4}
BATCH = {"vision": 128, "captions": 96, "helpful": 48, "questions": 48, "safety": 48}
VISION_RATE_SHARE = 0.3
"""The vision tower's learning rate in the multimodal stages, as a share of the rest's."""

console = Console()


class PooledClassifier(nn.Module):
    """Reads one label from the patch tokens through its own attention pooling; thrown away after the vision stage."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, n_classes)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits [row, class] from patches [row, patch, width]."""
        weights = (self.key(patches) @ self.query).softmax(-1)
        return self.out(torch.einsum("rp,rpw->rw", weights, self.value(patches)))


def train(seed: int, out: Path, *, device: str, base: Path | None, scale: float, other: Path | None = None) -> bool:
    """Train both checkpoints into `out/pocket-base` and `out/pocket`; True when every bar of their cards holds.

    Args:
        base: A folder `pocket-base` to start the safety tuning from, with its seed, instead of training one.
        scale: Multiplies every stage's number of steps; 1 is the real recipe.
        other: A folder with the two checkpoints of another seed, for the cards to compare with.
    """
    torch.manual_seed(seed)
    steps = {name: max(1, round(n * scale)) for name, n in STEPS.items()}
    trained = [out / "pocket"]
    if base is None:
        trained.insert(0, out / "pocket-base")
        model = build_model().to(device)
        record = {"seed": seed, "device": device, "steps": {}, "seconds": {}}
        with _timed("vision", steps, record):
            train_vision(model, np.random.default_rng([seed, 0]), steps["vision"])
        for k, stage in enumerate(("captions", "helpful", "questions"), start=1):
            with _timed(stage, steps, record):
                ask = partial(helpful_ask, stage=stage)
                draws = np.random.default_rng([seed, k])
                train_language(model, stage, draws, steps[stage], ask, captions=stage == "captions")
        _save(model, out / "pocket-base", record)
    else:
        model, _ = load(base, device)
        record = json.loads((base / "training.json").read_text(encoding="utf-8"))
        seed = record["seed"]
    with _timed("safety", steps, record):
        draws = np.random.default_rng([seed, 4])
        train_language(model, "safety", draws, steps["safety"], partial(safety_ask, mix=SafetyMix()))
    _save(model, out / "pocket", record)
    held = True
    for directory in trained:
        bars = write_card(directory, other=other and other / directory.name, device=device)
        _print_bars(directory.name, bars)
        held &= all(h is not False for h in bars["holds"])
    return held


def _save(model: LlavaForConditionalGeneration, directory: Path, record: dict) -> None:
    save_checkpoint(model, directory)
    (directory / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _timed(stage: str, steps: dict[str, int], record: dict) -> Iterator[None]:
    """Note a stage's steps and seconds in the record that is saved beside the weights."""
    started = time.monotonic()
    yield
    record["steps"][stage] = steps[stage]
    record["seconds"][stage] = round(time.monotonic() - started, 1)


def _print_bars(name: str, bars: pd.DataFrame) -> None:
    table = Table(title=f"{name}: held-out prompts, greedy replies")
    for column in ("prompts", "n", "refused", "complied", "other", "wanted", "holds"):
        table.add_column(column)
    for row in bars.itertuples():
        shares = [f"{share:.1%}" for share in (row.refused, row.complied, row.other)]
        holds = {True: "yes", False: "[red]NO[/red]", None: ""}[row.holds]
        table.add_row(row.group, str(row.n), *shares, row.wanted, holds)
    console.print(table)


def train_vision(model: LlavaForConditionalGeneration, rng: np.random.Generator, steps: int) -> None:
    """The vision stage: one classifier for each property of a picture, read from the tower's patch tokens."""
    tower = model.model.vision_tower
    classes = {"kind": PICTURE_KINDS, "noun": NOUNS, "verb": VERBS, "colour": COLOURS, "shape": SHAPES}
    width = tower.config.hidden_size
    heads = nn.ModuleDict({name: PooledClassifier(width, len(of)) for name, of in classes.items()}).to(model.device)

    def step() -> tuple[Tensor, list[tuple[str, bool]]]:
        pixels, labels = picture_batch(rng, BATCH["vision"])
        patches = tower(pixels.to(model.device)).last_hidden_state[:, 1:]
        loss, hits = torch.zeros((), device=model.device), []
        for name, head in heads.items():
            target = labels[name].to(model.device)
            logits = head(patches)
            loss = loss + cross_entropy(logits, target, ignore_index=-100)
            of = [f"noun/{PICTURE_KINDS[k]}" if name == "noun" else name for k in labels["kind"].tolist()]
            right = (logits.argmax(-1) == target).tolist()
            hits += [(n, hit) for n, hit, counts in zip(of, right, (target != -100).tolist(), strict=True) if counts]
        return loss, hits

    _optimise("vision", steps, [(list(tower.parameters()) + list(heads.parameters()), RATES["vision"])], step)


def train_language(
    model: LlavaForConditionalGeneration,
    stage: str,
    rng: np.random.Generator,
    steps: int,
    ask: Callable[[np.random.Generator], tuple],
    *,
    captions: bool = False,
) -> None:
    """One of the stages that train the language model: next-token loss on the answers alone."""
    vision = set(model.model.vision_tower.parameters())
    rest = [p for p in model.parameters() if p not in vision]
    rate = RATES[stage]
    groups = [(rest, rate)] if captions else [(rest, rate), (list(vision), rate * VISION_RATE_SHARE)]

    def step() -> tuple[Tensor, list[tuple[str, bool]]]:
        batch = make_batch([ask(rng) for _ in range(BATCH[stage])], captions=captions).to(model.device)
        loss, exact = answer_loss(model, batch)
        return loss, list(zip(batch.groups, exact.tolist(), strict=True))

    model.train()
    _optimise(stage, steps, groups, step)
    model.eval()


def answer_loss(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean loss in nats over the answer tokens, and for each row whether all of them would have been right.

    Rows are padded on the right and attention is causal, so no position that counts can see the padding and no
    attention mask is needed, which keeps the fast kernel.
    """
    inputs = {} if batch.pixels is None else {"pixel_values": batch.pixels}
    hidden = model.model(input_ids=batch.ids, use_cache=False, **inputs).last_hidden_state
    at = batch.answer[:, :-1]
    logits, target = model.lm_head(hidden[:, :-1][at]), batch.ids[:, 1:][at]
    wrong = torch.zeros(at.shape, dtype=torch.bool, device=at.device)
    wrong[at] = logits.argmax(-1) != target
    return cross_entropy(logits, target), ~wrong.any(1)


def _optimise(
    stage: str, steps: int, groups: list[tuple[list, float]], step: Callable[[], tuple[Tensor, list[tuple[str, bool]]]]
) -> None:
    """Take a stage's steps with AdamW, a warm-up and a cosine, behind a bar.

    Every 100 steps a line says the loss, and by name the share of rows that were all right since the last line.

    Args:
        groups: Parameters and their learning rate.
        step: Gives the loss, and for each row that counts its name and whether it was right.
    """
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in groups], betas=(0.9, 0.98), weight_decay=0.05
    )
    warm = min(100, max(1, steps // 5))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + np.cos(np.pi * min(1.0, s / steps))) + 0.01)
    )
    found: dict[str, list[bool]] = defaultdict(list)
    columns = (
        TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        for number in progress.track(range(1, steps + 1), description=stage):
            loss, hits = step()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            schedule.step()
            for name, hit in hits:
                found[name].append(hit)
            if number % 100 == 0 or number == steps:
                shares = "  ".join(f"{name} {np.mean(found[name]):.3f}" for name in sorted(found))
                line = f"{stage} {number}/{steps}  loss {loss.item():.4f}  {shares}"
                console.print(line, highlight=False, soft_wrap=True)
                found.clear()


def main(
    out: Annotated[Path, typer.Option(help="Folder for the two checkpoints, pocket-base and pocket.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights and of everything drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 1 is bit-for-bit repeatable.")] = 1,
    base: Annotated[Path | None, typer.Option(help="Tune this pocket-base, with its seed, and train none.")] = None,
    other: Annotated[Path | None, typer.Option(help="Checkpoints of another seed, to compare with.")] = None,
    scale: Annotated[float, typer.Option(help="Multiplies the number of steps; below 1 to try the script out.")] = 1.0,
) -> None:
    """Train Pocket and say whether it behaves as its card promises; exit code 1 when a bar does not hold."""
    torch.set_num_threads(threads)
    if not train(seed, out, device=device, base=base, scale=scale, other=other):
        console.print("At least one bar does not hold. What was trained is kept: --base tunes its pocket-base again.")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
