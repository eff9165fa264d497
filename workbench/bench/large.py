"""The benchmark at a large model's size, in the minutes that a GPU machine without a network is lent for.

Random weights, so nothing is fetched; what a map of heads costs does not depend on them. Every step foresees what its
next piece takes from the rows before it, and leaves out what would not fit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from workbench.bench import jobs
from workbench.bench.rates import copy_rate, matmul_rate
from workbench.bench.steps import Clock, Step
from workbench.bench.synthetic import Shape, build, questions
from workbench.bench.timing import Row, in_turn
from workbench.models.conformance.report import conformance
from workbench.models.hooked import HookedLVLM
from workbench.models.masks import Mask
from workbench.models.tiny import build_tiny
from workbench.models.walk import BasePass, base_pass
from workbench.runs.job import Job
from workbench.sweeps.engines.exact import layer_cells
from workbench.sweeps.operations import Counts
from workbench.sweeps.peak import held_bytes, peak_bytes
from workbench.sweeps.plan import batch_bytes, plan, planned_bytes, weight_bytes

FAMILIES = ("llava", "qwen2_vl", "gemma3")
WORDS = 24  # with 576 image tokens and the template, prompts of about 610 tokens
ROWS = (8, 16, 32, 64, 128, 256)
DIRECTIONS = (1, 4, 16)
MOST_PROMPTS = 4
PEER_CELLS = 6  # drawn at random, their time scaled to all


@dataclass
class Large:
    """What the steps measure, and what each of them leaves for those after it."""

    shape: Shape
    name: str
    device: str
    dtype: torch.dtype
    rate: float = 0.0
    map_seconds: float = 0.0
    model: HookedLVLM | None = None

    def steps(self) -> list[Step]:
        """In order, the most telling first."""
        return [
            Step("rate", 20, self.rates),
            Step("contract", 60, self.contract),
            Step("exact_map", 180, self.exact),
            Step("find_top5", 90, self.find),
            Step("peers", 70, self.hooks),
        ]

    def rates(self, clock: Clock) -> Iterator[Row]:
        """What the device can do: a large matrix product, and a large copy."""
        device = torch.device(self.device)
        self.rate = matmul_rate(device, self.dtype)
        yield self.row("rate", "matmul", 0.0, operations_per_second=f"{self.rate:.4g}")
        yield self.row("rate", "copy", 0.0, bytes_per_second=f"{copy_rate(device):.4g}")

    def contract(self, clock: Clock) -> Iterator[Row]:
        """The checks of `workbench check` on tiny models, in the dtypes people sweep in."""
        longest = 0.0
        for dtype in dict.fromkeys((self.dtype, torch.bfloat16, torch.float16)):
            for family in FAMILIES:
                if not clock.fits(longest):
                    return
                tiny = build_tiny(family, dtype=dtype, device=self.device)
                seconds, report = self.timed(partial(conformance, tiny))
                longest = max(longest, seconds)
                yield self.row(
                    "contract", f"{family}, {report.dtype}", seconds, ok=report.ok,
                    passed=sum(f.verdict == "ok" for f in report.findings),
                    failures={f.check: f.detail[:300] for f in report.failures},
                )  # fmt: skip

    def exact(self, clock: Clock) -> Iterator[Row]:
        """One layer at several numbers of rows, layers at several depths, and all layers, foreseen and done."""
        seconds, model = self.timed(lambda: random_model(self.shape, self.name, self.device, self.dtype))
        self.model, n_cells = model, 2 * model.n_heads
        yield self.row("exact_map", "build", seconds, weights_gib=gib(weight_bytes(model)))
        prompts = questions(8, words=WORDS, side=self.shape.side)
        encoded, counts = [model.encode(prompt) for prompt in prompts], Counts(model)
        forward, n_pos = counts.forward(encoded[0]), encoded[0].n_tokens
        unmasked, base = self.timed(lambda: base_pass(model, encoded[:1]), repeats=3)
        yield self.row("exact_map", "base pass", unmasked, tokens=n_pos, matmul_share=self.share(forward, unmasked))
        middle, speeds = model.n_layers // 2, {0: forward / unmasked}
        for rows in (n for n in ROWS if n <= n_cells):
            if clock.fits(3 * rows * counts.cell(n_pos, middle) / max(speeds.values())):
                row, speeds[rows] = self.layer(model, base, counts, middle, rows, rows)
                yield row
        most = max((speeds[rows], rows) for rows in speeds if rows)[1] if len(speeds) > 1 else ROWS[0]
        depths = {}
        for layer in sorted({0, model.n_layers // 4, middle, 3 * model.n_layers // 4, model.n_layers - 2}):
            if clock.fits(3 * n_cells * counts.cell(n_pos, layer) / max(speeds.values())):
                row, depths[layer] = self.layer(model, base, counts, layer, n_cells, most)
                yield row
        known = depths or {middle: max(speeds.values())}
        self.map_seconds = unmasked + sum(
            n_cells * counts.cell(n_pos, layer) / float(np.interp(layer, list(known), list(known.values())))
            for layer in model.masked_layers
        )
        if clock.fits(self.map_seconds / 4):
            yield self.profiled(model, base, middle, most)
        n = max(0, min(MOST_PROMPTS, int(clock.left() / 1.25 / self.map_seconds)))
        yield self.row("exact_map", "foreseen, a prompt", self.map_seconds, prompts_that_fit=n, most_rows=most)
        if n:
            yield self.whole(model, prompts[:n], counts)

    def whole(self, model: HookedLVLM, prompts: Any, counts: Counts) -> Row:
        """The whole map of some prompts as a user sweeps it, against what was foreseen."""
        encoded = [model.encode(prompt) for prompt in prompts]
        longest = max(e.n_tokens for e in encoded)
        planned = held_bytes(model.device) + planned_bytes(model, longest, plan(model, longest), len(prompts))
        timings, results = in_turn({"exact": lambda: jobs.swept(model, prompts, "exact")}, 1, model.device)
        seconds, attrs = timings["exact"].wall[0], results["exact"].attrs
        foreseen, self.map_seconds = len(prompts) * self.map_seconds, seconds / len(prompts)
        done = counts.exact_map(encoded)
        return self.row(
            "exact_map", "exact", seconds, prompts=len(prompts), cells=len(jobs.cells_of(model)),
            foreseen_seconds=round(foreseen, 3),
            operation_ratio=round(counts.naive_map(encoded) / done, 3),
            layer_token_share=round(attrs["layer_tokens"] / attrs["naive_layer_tokens"], 4),
            matmul_share=self.share(done, seconds), partition=attrs["partition"],
            peak_gib=gib(timings["exact"].peak_bytes), planned_gib=gib(planned),
        )  # fmt: skip

    def layer(
        self, model: HookedLVLM, base: BasePass, counts: Counts, layer: int, rows: int, most: int
    ) -> tuple[Row, float]:
        """Some cells of one layer, and the operations a second they were done at."""
        cells = tuple(divmod(number, model.n_heads) for number in range(rows))
        job = Job(jobs.PROJECTIONS, Mask(), {layer: cells}, False)
        planned = held_bytes(model.device) + batch_bytes(model, base.n_pos, most)
        seconds, _ = self.timed(partial(layer_cells, model, base, layer, job, most), repeats=2)
        work = rows * counts.cell(base.n_pos, layer)
        found = self.row(
            "exact_layer", f"layer {layer}, {rows} cells, {most} rows", seconds,
            matmul_share=self.share(work, seconds), peak_gib=gib(peak_bytes(model.device)), planned_gib=gib(planned),
        )  # fmt: skip
        return found, work / seconds

    def profiled(self, model: HookedLVLM, base: BasePass, layer: int, rows: int) -> Row:
        """Where the time of one layer goes: the kernels that take the most of it."""
        from torch.profiler import ProfilerActivity, profile

        on_gpu = model.device.type == "cuda"
        job = Job(jobs.PROJECTIONS, Mask(), None, False)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as seen:
            seconds, _ = self.timed(partial(layer_cells, model, base, layer, job, rows))
        name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        spent = {event.key: getattr(event, name) for event in seen.key_averages()}
        total = sum(spent.values()) or 1
        first = sorted(spent, key=lambda key: -spent[key])[:10]
        return self.row(
            "exact_layer", f"profile of layer {layer}", seconds,
            top_ten={key[:120]: f"{spent[key] / total:.1%}" for key in first},
        )  # fmt: skip

    def find(self, clock: Clock) -> Iterator[Row]:
        """Estimates for all heads of the large model, and the search end to end on a quarter of its layers."""
        if self.model is not None:
            asked, seconds = questions(4, words=WORDS, side=self.shape.side), 0.0
            for directions in DIRECTIONS:
                if clock.fits(5 * seconds):
                    seconds, _ = self.timed(partial(jobs.estimated, self.model, asked, directions))
                    more = {"prompts": len(asked), "maps": round(seconds / len(asked) / self.map_seconds, 3)}
                    yield self.row("estimates", f"{directions} directions", seconds, **more)
        shallow = replace(self.shape, layers=max(2, self.shape.layers // 4))
        small = random_model(shallow, f"{self.name}, {shallow.layers} layers", self.device, self.dtype)
        # A map's cost grows with the square of the layers. The exact map is done once, for the truth; half the time
        # is left to the search.
        one = self.map_seconds * (shallow.layers / self.shape.layers) ** 2
        n = min(24, int(clock.left() / 2 / max(one, 0.05))) // 2 * 2
        if n < 4:
            yield self.row("find_top5", "left out", 0.0, why="too little time left")
            return
        asked = questions(n, words=WORDS, side=self.shape.side)
        for row in jobs.find_top5(small, asked, repeats=1, peer_names=[], part=1):
            row.more["prompts"] = n
            yield row

    def hooks(self, clock: Clock) -> Iterator[Row]:
        """A random part of the cells as users of the peers write it, against the exact engine on the same prompts."""
        model = self.model
        assert model is not None, "the model was not built"
        prompts = questions(4, words=WORDS, side=self.shape.side)
        encoded, cells = [model.encode(prompt) for prompt in prompts], jobs.cells_of(model)
        drawn = [cells[i] for i in jobs.a_part(cells, PEER_CELLS)]
        scale, exact = (len(cells) + 1) / (len(drawn) + 1), len(prompts) * self.map_seconds
        run = jobs.swept(model, prompts, "exact", heads=sorted({(layer, head) for _, layer, head in drawn}))
        ours = np.stack([run.deflection.sel(projection=p, layer=at, head=h).values for p, at, h in drawn], 1)
        counts, seconds = Counts(model), 0.0
        for name in ("hooks", "transformer_lens"):
            if not clock.fits(3 * seconds):
                return
            call = jobs.peer_calls(model, encoded, drawn, [name])[name]
            timings, results = in_turn({name: call}, 2 if name == "hooks" else 1, model.device)
            seconds = min(timings[name].wall)
            row = self.row(
                "exact_map", name, scale * seconds, prompts=len(prompts), cells=len(drawn),
                operation_ratio=round(counts.naive_map(encoded) / counts.exact_map(encoded), 3),
                exact_seconds=round(exact, 3),
            )  # fmt: skip
            row.agreement, row.scaled = float(np.abs(results[name] - ours).max()), round(scale, 3)
            row.against, row.ratio = "exact", round(scale * seconds / exact, 3) if exact else None
            yield row

    def timed(self, call: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
        """The shortest wall time of a few, and the last result."""
        timings, results = in_turn({"": call}, repeats, torch.device(self.device))
        return min(timings[""].wall), results[""]

    def share(self, operations: float, seconds: float) -> float:
        """Of the rate of a large matrix product."""
        return round(operations / seconds / self.rate, 3)

    def row(self, job: str, engine: str, seconds: float, **more: Any) -> Row:
        """A row of this model."""
        return Row(job, self.name, engine, round(seconds, 4), 0.0, more=more)


def random_model(shape: Shape, name: str, device: str, dtype: torch.dtype) -> HookedLVLM:
    """An uneven random model, known by its name and seed: hashing 14 GB of weights would be timed with the sweep."""
    model = build(shape, name=name, device=device, dtype=dtype, uneven=True)
    model.weight_hash = f"random: {name}, {dtype}"
    return model


def gib(size: float) -> float:
    """Bytes in GiB, to two digits."""
    return round(size / 2**30, 2)
