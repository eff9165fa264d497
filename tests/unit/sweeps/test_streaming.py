"""A sweep holds what it needs for the block at hand: prompts are encoded when they are needed, and let go again."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from tests.builders.models import seeded
from tests.builders.prompts import asked, pictures
from workbench.detectors import looks
from workbench.detectors.looks import Wants, look
from workbench.errors import PromptError, RunError
from workbench.models import encodings
from workbench.models.encode import Encoded
from workbench.replies import generate_batch
from workbench.sweeps import sweep as sweep_module
from workbench.sweeps.plan import plan

N, BLOCK = 24, 4
LITTLE = {"heads": [(3, 0)], "projections": "value", "progress": False}


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of four prompts."""
    monkeypatch.setattr(sweep_module, "plan", lambda *args, **options: plan(*args, **{**options, "block": BLOCK}))


@pytest.fixture
def alive(monkeypatch) -> dict[str, int]:
    """How many encoded prompts there are now, and were at most; and how many were made."""
    counts, made = {"now": 0, "most": 0, "made": 0}, Encoded.__init__

    def counted(self, *args, **options):
        made(self, *args, **options)
        counts["now"], counts["made"] = counts["now"] + 1, counts["made"] + 1
        counts["most"] = max(counts["most"], counts["now"])
        weakref.finalize(self, lambda: counts.update(now=counts["now"] - 1))

    monkeypatch.setattr(Encoded, "__init__", counted)
    return counts


def prompts(n: int = N) -> list[wb.Prompt]:
    return asked([f"what is {'this ' * (k % 3)}" for k in range(n)], pictures(n))


@pytest.mark.slow
def test_encoded_prompts_are_let_go_block_by_block(blocks, alive, monkeypatch):
    model = seeded("llava")
    whole = wb.sweep(model, prompts(), **LITTLE)
    gc.collect()
    monkeypatch.setattr(encodings, "ENCODED_BUDGET", 1)
    alive.update(now=0, most=0, made=0)
    run = wb.sweep(model, prompts(), **LITTLE)
    assert alive["made"] <= N + 2, "each is encoded once, and a blank picture once a size"
    assert alive["most"] <= 2 * BLOCK + 2, "a block, the one before until it is let go, and the last that was kept"
    for name in whole.data_vars:
        np.testing.assert_array_equal(run[name], whole[name])


@pytest.mark.slow
def test_who_looks_or_answers_holds_a_batch_of_encoded_prompts(alive, monkeypatch):
    model, given = seeded("llava"), prompts()
    reads = {"state": looks.final_state}
    whole, replies = look(model, given, Wants(reads)), generate_batch(model, given, max_new_tokens=2, rows=BLOCK)
    gc.collect()
    monkeypatch.setattr(encodings, "ENCODED_BUDGET", 1)
    monkeypatch.setattr(looks, "ROWS", BLOCK)
    alive.update(now=0, most=0)
    seen = look(model, given, Wants(reads))
    assert generate_batch(model, given, max_new_tokens=2, rows=BLOCK) == replies
    assert alive["most"] <= 2 * BLOCK + 2
    np.testing.assert_allclose(seen["state"], whole["state"], atol=1e-5)


@pytest.mark.slow
def test_a_search_holds_the_encoded_prompt_that_it_looks_at(alive, monkeypatch):
    model = seeded("llava")
    given = [replace(p, label="unsafe") for p in prompts(20)]
    monkeypatch.setattr(encodings, "ENCODED_BUDGET", 1)
    alive.update(now=0, most=0)
    wb.find_heads(model, given, k=1, rule="sensitivity", projection="query", progress=False)
    assert alive["most"] <= 4


def test_a_stored_run_is_read_when_its_values_are_asked_for(tmp_path, blocks):
    run = wb.sweep(seeded("llava"), prompts(8), out=tmp_path / "run.zarr", **LITTLE)
    assert not run["deflection"].variable._in_memory
    assert run.equals(wb.open_run(tmp_path / "run.zarr"))
    assert np.isfinite(run["deflection"].sel(layer=3, head=0).values).all()


def test_what_text_and_size_show_is_said_before_anything_is_computed(tmp_path, blocks):
    model, given = seeded("llava"), prompts(12)
    given[11] = replace(given[11], text="what " * 2000)
    with pytest.raises(PromptError, match=r"Prompt 'p11' cannot be swept.*tokens long"):
        wb.sweep(model, given, out=tmp_path / "run.zarr", **LITTLE)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.slow
def test_only_blocks_that_were_begun_are_encoded_again_to_compare(tmp_path, blocks, monkeypatch):
    model, given, out = seeded("llava"), prompts(12), tmp_path / "run.zarr"
    encode, seen = model.encode, []
    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", lambda p: 1 / 0 if p.id == "p9" else encode(p))
        with pytest.raises(PromptError, match="'p9'"):
            wb.sweep(model, given, out=out, **LITTLE)
    monkeypatch.setattr(model, "encode", lambda p: (seen.append(p.id), encode(p))[1])
    wb.sweep(model, given, out=out, **LITTLE)
    assert [i for i in seen if seen.count(i) > 1] == ["p0", "p0"], "p0 gave its picture's size to the plan"
    assert set(seen) == {p.id for p in given}
    changed = [replace(p, image=p.image.rotate(180)) if p.id == "p1" else p for p in given]
    with pytest.raises(RunError, match="another run"):
        wb.sweep(model, changed, out=out, **LITTLE)
