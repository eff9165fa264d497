"""How much work a sweep does, counted: the counts do not depend on the machine's mood."""

import dataclasses
import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console
from scipy.stats import spearmanr

import workbench as wb
from tests.builders.models import tiny
from tests.builders.prompts import WORDS, asked, pictures
from workbench.cli.prompts import Asked
from workbench.cli.sweep import plan_command, sweep_command
from workbench.errors import PromptError, WorkbenchError
from workbench.runs.job import Partition
from workbench.runs.opening import open_run
from workbench.sweeps import forecast
from workbench.sweeps.engines.exact import layer_cells
from workbench.sweeps.execution import work_line
from workbench.sweeps.operations import Counts

TEXTS = WORDS[:4]


@pytest.fixture(scope="module")
def model():
    return tiny()


def prompts(images: bool = True) -> list[wb.Prompt]:
    return asked(TEXTS, pictures(len(TEXTS)) if images else None)


def test_masks_run_the_layers_above_them_and_the_last_position_of_the_last(model):
    seen = [0]

    def count(module, args):
        seen[0] += args[0].shape[0] * args[0].shape[1]

    handles = [layer.mlp.register_forward_pre_hook(count) for layer in model.layers]
    run = wb.sweep(model, prompts(), progress=False)
    for handle in handles:
        handle.remove()
    last, rows = model.n_layers - 1, 2 * model.n_heads
    lengths = [model.encode(p).n_tokens for p in prompts()]
    wanted = sum(
        model.n_layers * n + rows * sum((last - layer) * n + 1 for layer in range(model.n_layers)) for n in lengths
    )
    assert run.attrs["layer_tokens"] == wanted
    assert seen[0] == wanted, "the counter is not what the layers saw"
    bound = (model.n_layers + 1) / (2 * model.n_layers)
    assert run.attrs["layer_tokens"] <= bound * run.attrs["naive_layer_tokens"]
    assert run.attrs["vision_passes"] == len(TEXTS)


def test_the_naive_count_is_what_the_naive_engine_does(model):
    run = wb.sweep(model, prompts()[:1], engine="naive", progress=False)
    # The unmasked pass is made twice: once for its states, once for what it says of every head.
    n, images = model.encode(prompts()[0]).n_tokens, 1
    assert run.attrs["layer_tokens"] - model.n_layers * n == run.attrs["naive_layer_tokens"]
    assert run.attrs["vision_passes"] - images == run.attrs["naive_vision_passes"]


def test_one_line_says_what_was_saved(model, capsys):
    run = wb.sweep(model, prompts(), progress=True)
    share = run.attrs["layer_tokens"] / run.attrs["naive_layer_tokens"]
    assert f"{share:.1%} of the naive count" in work_line(run.attrs)
    printed = " ".join(capsys.readouterr().err.split())
    assert f"{share:.1%} of the naive count" in printed
    assert "4 image passes, not 196" in printed
    assert "192 read-outs" in printed


def test_the_vocabulary_counts_in_the_work(model):
    run = wb.sweep(model, prompts(), progress=False)
    attrs = dict(run.attrs)
    assert attrs["readouts"] == attrs["naive_readouts"] == run.deflection.size
    assert attrs["readout_operations"] == 2 * model.d_model * model.d_vocab
    share = attrs["layer_tokens"] / attrs["naive_layer_tokens"]
    attrs["readout_operations"] = 10**12  # a vocabulary beside which layers are nothing saves nothing
    assert "100.0% of the naive operations" in work_line(attrs)
    without = wb.sweep(model, prompts(), measures="deflection", progress=False).attrs
    assert without["readouts"] == without["naive_readouts"] == 0
    assert f"{share:.1%} of the naive operations" in work_line(without)


def test_planned_memory_is_what_is_used(model):
    run = wb.sweep(model, prompts(), progress=False)
    assert 0.75 < run.attrs["used_bytes"] / run.attrs["planned_bytes"] < 1.25


PEAK = """
import numpy as np, torch
from workbench.sweeps.peak import CLEAR, peak_bytes, reset_peak
device = torch.device("cpu")
reset_peak(device)
before = peak_bytes(device)
block = np.ones(2**26, np.uint8)
del block
grown = peak_bytes(device)
reset_peak(device)
try:
    CLEAR.write_text("5")
    may_reset = True
except OSError:
    may_reset = False
print(before, grown, peak_bytes(device), int(may_reset))
"""


@pytest.mark.slow
def test_the_peak_of_memory_is_of_what_was_run():
    """In a process of its own: where nobody may reset the peak, it is that of everything the process did before."""
    printed = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout
    before, grown, after, may_reset = map(int, printed.split())
    assert 2**25 < grown - before < 2**27
    assert after < before + 2**25 if may_reset else after == grown


def test_a_plan_counts_what_the_sweep_will_do(model, monkeypatch):
    """With a clock that gives every operation the same time, the forecast is the count of operations."""
    counts, asked = Counts(model), prompts()
    encoded, rate = [model.encode(prompt) for prompt in asked], 1e9

    def clocked(call, device):
        return spent_on(call) / rate, call()

    def spent_on(call):
        if call.func is layer_cells:
            base, layer, job = call.args[1:4]
            return len(job.cells[layer]) * base.n_prompts * counts.cell(base.n_pos, layer)
        return sum(map(counts.forward, call.args[1]))

    monkeypatch.setattr(forecast, "timed", clocked)
    before = dataclasses.replace(model.work)
    found = wb.plan(model, asked)
    assert found.seconds == pytest.approx(counts.exact_map(encoded) / rate)
    assert found.share == pytest.approx(counts.exact_map(encoded) / counts.naive_map(encoded))
    assert (found.prompts, found.cells) == (len(asked), 2 * model.n_layers * model.n_heads)
    assert found.tokens == sum(e.n_tokens for e in encoded)
    assert model.work == before
    run = wb.sweep(model, asked, progress=False, keep_states=False)
    assert found.disk_bytes == sum(run[name].nbytes for name in run.data_vars if name != "write_root")
    assert found.partition == Partition.parse(run.attrs["partition"])
    some = wb.plan(model, asked, heads=[(0, 1)], projections="query", measures="deflection")
    assert some.cells == 1
    assert some.seconds < found.seconds / 5


def test_the_command_line_plans_in_a_sentence(tmp_path):
    said = io.StringIO()
    options = {"model": "planted", "prompts": Asked(["planted"], n=12), "projections": ["query"]}
    table = plan_command(Console(file=said, width=400), **options)
    assert table[["prompts", "cells"]].values.tolist() == [[12, 16]]
    assert re.search(r"12 prompts .* x 16 cells: about 0:00:\d\d, .* of memory .* on disk", said.getvalue())


@pytest.mark.parametrize(("positions", "most"), [("last", 0.12), ("after_image", 0.6)])
def test_masks_at_fewer_positions_reuse_what_comes_before(model, positions, most):
    whole = wb.sweep(model, prompts(), progress=False)
    part = wb.sweep(model, prompts(), mask=wb.Mask(positions=positions), progress=False)
    base = model.n_layers * sum(model.encode(p).n_tokens for p in prompts())
    # A sweep of so few prompts masks all positions of all of them once more, for the agreement.
    part.attrs["layer_tokens"] -= whole.attrs["layer_tokens"]
    assert part.attrs["layer_tokens"] - base < most * (whole.attrs["layer_tokens"] - base)


def test_agreement_of_positions_is_reported(model, capsys):
    part = wb.sweep(model, prompts(), mask=wb.Mask(positions="last"), progress=True)
    found, whole = part.attrs["positions_agreement"], wb.sweep(model, prompts(), progress=False)
    assert found["prompts"] == len(TEXTS)
    for name in ("query", "value"):
        one, other = (r.deflection.sel(projection=name).mean("prompt").values.ravel() for r in (whole, part))
        assert found["spearman"][name] == pytest.approx(spearmanr(one, other).statistic, abs=2e-4)
        assert found["top_shared"][name] == len(set(one.argsort()[-5:]) & set(other.argsort()[-5:])) / 5
    printed = " ".join(capsys.readouterr().err.split())
    assert f"query: rank correlation {found['spearman']['query']:.2f}" in printed
    assert "positions_agreement" not in whole.attrs
    few = wb.sweep(model, prompts(), mask=wb.Mask(positions="last"), heads=[(0, 0), (1, 0)], progress=False)
    assert few.attrs["positions_agreement"]["spearman"] == {}


@pytest.mark.slow
def test_the_command_stores_a_run(tmp_path):
    console = Console(record=True, width=400)
    out = str(tmp_path / "run.zarr")
    options = {"projections": ["value"], "mask": wb.Mask(form="scale", factor=0.5)}
    asked = Asked(["planted"], split="selection", n=6)
    sweep_command(console, model="planted", prompts=asked, out=out, **options)
    said = console.export_text()
    assert "6 prompts" in said
    assert f"workbench score {out}" in said
    run = wb.sweep(
        wb.load_model("planted"),
        wb.load_prompts("planted", split="selection", n=6),
        projections=("value",),
        mask=options["mask"],
        out=out,
        progress=False,
    )
    assert run.attrs["mask_factor"] == 0.5
    options |= {"engine": "find", "options": ["k=2", "rule=sensitivity", "directions=1"], "out": f"{out}-find"}
    sweep_command(console, model="planted", prompts=asked, **options)
    stored = json.loads(open_run(f"{out}-find").attrs["engine_options"])
    assert (stored["k"], stored["rule"], stored["directions"]) == (2, "sensitivity", 1)
    for wrong in ("k", "k=", "=2"):
        with pytest.raises(WorkbenchError, match=f"NAME=VALUE, such as k=3; got '{wrong}'"):
            sweep_command(console, model="planted", prompts=asked, **(options | {"options": [wrong]}))
    with pytest.raises(PromptError):
        sweep_command(console, model="planted", prompts="nothing", out=out, projections=["value"])
