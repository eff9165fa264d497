"""Train Pocket from a seed: `python -m workbench.models.embedded.pocket.train --seed 0 --out DIR`.

The vision tower first learns to tell pictures apart, as CLIP would have. The language model then learns its sentences
from captions alone, which spares it a long plateau, after that from pixels, and last from more questions than requests,
since colours come late: this is `pocket-base`, helpful about everything. Safety tuning of a few attention heads, on
some families and some nouns, makes it `pocket`.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from workbench.axes import head_name
from workbench.models.embedded.pocket.behaviour import load
from workbench.models.embedded.pocket.config import build_model, save_checkpoint
from workbench.models.embedded.pocket.stages import STEPS, Safety, train_helpful, train_safety, train_vision
from workbench.models.embedded.pocket.stepping import Machine, console

WORK = {"vision": 1.0, "captions": 1.6, "helpful": 2.5, "questions": 2.5, "dangers": 2.5, "safety": 2.5}
"""About what a step of each stage costs beside the others, for the time that is left."""


def train(seed: int, out: Path, machine: Machine, *, scale: float = 1.0) -> None:
    """Train both checkpoints of a seed into `out`, all stages in one go, or from the base on where that is done.

    Args:
        seed: Of the weights and of everything drawn.
        out: Gets `pocket-base` and `pocket`, with the seed behind them where it is not 0.
        scale: Multiplies every stage's number of steps; 1 is the real recipe.
    """
    torch.manual_seed(seed)
    steps, tuning = ({name: max(1, round(n * scale)) for name, n in of.items()} for of in (STEPS, Safety().steps))
    plan = {**steps, "safety": sum(tuning.values())}
    ending = f"-{seed}" if seed else ""
    base = out / f"pocket-base{ending}"
    record = json.loads((base / "training.json").read_text("utf-8")) if (base / "training.json").exists() else {}
    if (record.get("seed"), record.get("steps")) == (seed, steps):
        console.print(f"{base} has been trained so: on with the safety tuning.", highlight=False, soft_wrap=True)
    else:
        model = build_model().to(machine.device)
        record = {"seed": seed, "device": machine.device, "steps": {}, "seconds": {}}
        for stage, n in steps.items():
            with _timed(stage, plan, record):
                if stage == "vision":
                    train_vision(model, seed, n, machine)
                else:
                    train_helpful(model, stage, seed, n, machine)
        _save(model, base, record)
    # What is tuned is what was stored: the weights rounded, the rotary frequencies, which are not stored, not.
    model = load(base, machine.device)[0]
    with _timed("safety", plan, record):
        heads = train_safety(model, seed, replace(Safety(), steps=tuning), machine)
    _save(model, out / f"pocket{ending}", {**record, "tuned_heads": [head_name(*head) for head in heads]})


def _save(model: torch.nn.Module, directory: Path, record: dict) -> None:
    save_checkpoint(model, directory)
    (directory / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _timed(stage: str, plan: dict[str, int], record: dict) -> Iterator[None]:
    """Note a stage's steps and seconds in the record that is saved beside the weights; say how long the rest takes."""
    started = time.monotonic()
    yield
    record["steps"][stage] = plan[stage]
    record["seconds"][stage] = round(time.monotonic() - started, 1)
    done = sum(WORK[name] * plan[name] for name in record["steps"])
    rest = sum(WORK[name] * n for name, n in plan.items()) - done
    minutes = sum(record["seconds"].values()) * rest / done / 60
    took = record["seconds"][stage]
    console.print(f"{stage} took {took:.0f} s; about {minutes:.1f} min to go in all", highlight=False)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the two checkpoints, pocket-base and pocket.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights and of everything drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 1 is bit-for-bit repeatable.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that draw pictures ahead.")] = 1,
    scale: Annotated[float, typer.Option(help="Multiplies the number of steps; below 1 to try the script out.")] = 1.0,
) -> None:
    """Train Pocket and its base from a seed, all stages in one go."""
    torch.set_num_threads(threads)
    try:
        train(seed, out, Machine(device, workers), scale=scale)
    except KeyboardInterrupt:
        console.print(f"Stopped. Whatever checkpoint lies in {out} is whole; the next run takes a base as it is.")
        raise typer.Exit(130) from None


if __name__ == "__main__":
    typer.run(main)
