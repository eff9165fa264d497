"""The training loop that all of Pocket's stages share: AdamW, a cosine, a line now and then; on a GPU, a CUDA graph."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from workbench.models.embedded.pocket.batches import Draws

console = Console()
EAGER_STEPS = 4  # before a graph is captured: the optimiser's state and the libraries' buffers have to be there
LINE_EVERY = 100

Tensors = dict[str, Tensor]
LossOf = Callable[[Tensors], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Group:
    """Parameters, and how they are learned."""

    parameters: list[nn.Parameter]
    rate: float
    decay: float = 0.05


@dataclass(frozen=True)
class Machine:
    """Where the training runs.

    Attributes:
        device: `"cpu"` or `"cuda"`.
        workers: Processes that draw batches ahead; what they draw does not depend on how many they are.
        graphs: Whether a GPU replays steps as CUDA graphs: the kernels of a model this small cost less than launching
            them one by one.
    """

    device: str = "cpu"
    workers: int = 1
    graphs: bool = True


def optimise(
    stage: str,
    draws: Draws,
    groups: list[Group],
    loss_of: LossOf,
    machine: Machine,
    *,
    masks: dict[nn.Parameter, Tensor] | None = None,
    after_step: Callable[[Tensor], None] | None = None,
) -> float:
    """Take a stage's steps, with a warm-up and a cosine, behind a bar; returns the last loss.

    Every 100 steps a line says the loss, the time left, and by name the share of rows that were all right since the
    last line.

    Args:
        loss_of: Gives the loss, and for each row (or each class and row, in the order of `names_of`) whether it was
            right.
        masks: By parameter, what its gradient is multiplied by.
        after_step: Called with the learning rate after every step; on the device only, since a graph replays it.
    """
    parameters = [p for group in groups for p in group.parameters]
    graphs = machine.graphs and machine.device.startswith("cuda")
    optimizer = torch.optim.AdamW(
        [
            {"params": g.parameters, "lr": torch.tensor(g.rate, device=machine.device), "weight_decay": g.decay}
            for g in groups
        ],
        betas=(0.9, 0.98),
        fused=True,
        capturable=graphs,
    )

    def step(tensors: Tensors) -> tuple[Tensor, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss, right = loss_of(tensors)
        loss.backward()
        for parameter, mask in (masks or {}).items():
            assert parameter.grad is not None
            parameter.grad.mul_(mask)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if after_step is not None:
            after_step(optimizer.param_groups[0]["lr"])
        return loss.detach(), right

    take = _Replayed(step) if graphs else step
    loader = DataLoader(draws, batch_size=None, collate_fn=_as_drawn, num_workers=machine.workers)
    warm, tally, started = min(100, max(1, draws.steps // 5)), _Tally(), time.monotonic()
    columns = (
        TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    loss = torch.zeros(())
    with Progress(*columns, console=console) as progress:
        for number, batch in enumerate(progress.track(loader, total=draws.steps, description=stage), start=1):
            factor = min(number / warm, 0.5 * (1 + np.cos(np.pi * (number - 1) / draws.steps)) + 0.01)
            for group, of in zip(optimizer.param_groups, groups, strict=True):
                group["lr"].fill_(of.rate * factor)
            loss, right = take(tensors_of(batch, machine.device))
            tally.add(batch, right.clone())
            if number % LINE_EVERY == 0 or number == draws.steps:
                left = (time.monotonic() - started) / number * (draws.steps - number)
                line = f"{stage} {number}/{draws.steps}  {left:.0f} s left  loss {loss.item():.4f}  {tally.said()}"
                console.print(line, highlight=False, soft_wrap=True)
    return loss.item()


def tensors_of(batch: Any, device: str) -> Tensors:
    """A batch's arrays on the device, by field; those of a dict by its keys."""
    arrays = {f.name: getattr(batch, f.name) for f in fields(batch)}
    arrays |= arrays.pop("labels", {})
    return {
        name: torch.from_numpy(of).to(device, non_blocking=True)
        for name, of in arrays.items()
        if isinstance(of, np.ndarray)
    }


class _Replayed:
    """A step that is captured as a CUDA graph and replayed from then on, with each batch copied to where the first was.

    After PyTorch's notes on CUDA graphs, "whole-network capture".
    """

    def __init__(self, step: Callable[[Tensors], tuple[Tensor, Tensor]]) -> None:
        self.step, self.calls = step, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: Tensors = {}
        self.outputs: tuple[Tensor, Tensor]

    def __call__(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.calls <= EAGER_STEPS:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                outputs = self.step(tensors)
            torch.cuda.current_stream().wait_stream(aside)
            return outputs
        if self.graph is None:
            self.inputs, self.graph = {name: t.clone() for name, t in tensors.items()}, torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(self.graph):
                self.outputs = self.step(self.inputs)
        for name, tensor in tensors.items():
            self.inputs[name].copy_(tensor, non_blocking=True)
        self.graph.replay()
        return self.outputs


class _Tally:
    """Which rows were right since the last line, by what they are counted as; read from the device at a line only."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Tensor]] = []

    def add(self, batch: Any, right: Tensor) -> None:
        self.seen.append((batch, right))

    def said(self) -> str:
        found: dict[str, list[bool]] = defaultdict(list)
        for batch, right in self.seen:
            for name, hit in zip(batch.names(), right.flatten().tolist(), strict=True):
                if name:
                    found[name].append(hit)
        self.seen.clear()
        return "  ".join(f"{name} {np.mean(found[name]):.3f}" for name in sorted(found))


def _as_drawn(batch: Any) -> Any:
    return batch
