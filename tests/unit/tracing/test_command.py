"""`workbench trace`: what it prints, writes, and refuses."""

import json
import sys

import pandas as pd
import pytest

import workbench as wb
from workbench import cli

PLANTED = ("-m", "planted", "-p", "planted", "--split", "test")


@pytest.fixture
def run(monkeypatch, capsys):
    """(exit status, what was printed, what went to the error stream) of a command line."""

    def running(*words):
        monkeypatch.setattr(sys, "argv", ["workbench", "trace", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return running


@pytest.mark.slow
def test_it_names_the_planted_head_and_writes_what_was_asked(run, tmp_path, monkeypatch):
    drawn = "workbench.views.figures.flows.save_trace_figures"  # which has tests of its own, and takes seconds
    monkeypatch.setattr(drawn, lambda trace, out: [out / f"{trace.sizes['pair']}_pairs.pdf"])
    files = ("--out", tmp_path / "t.zarr", "--table", tmp_path / "t.csv", "--figures", tmp_path / "figures")
    status, out, err = run(*PLANTED, "-n", 4, *files, "--window", 0)
    assert status == 0, err
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("L")]
    assert rows[0][:5] == ["L3H1", "last", "noise", "1", "1"]
    assert {row[0] for row in rows} == {"L3H1"}
    assert "mean over 2 pairs" in out
    assert wb.open_trace(tmp_path / "t.zarr").sizes["pair"] == 2
    assert len(pd.read_csv(tmp_path / "t.csv")) == 2 * 6 * 4 * (3 + 4)
    assert "2_pairs.pdf" in out.replace("\n", "")
    again = (*PLANTED, "-n", 4, "--out", tmp_path / "t.zarr", "--window", 0)
    status, out, err = run(*again, "--json", "--top", 1, "--component", "heads", "--component", "residual")
    assert status == 1
    assert "holds another trace: components is" in err
    status, out, _ = run(*again, "--json", "--top", 1)
    assert status == 0
    (first,) = json.loads(out)
    assert (first["layer"], first["token_group"], first["n"]) == (3, "last", 2)


def test_mistakes_are_told_in_a_sentence(run):
    status, _, err = run(*PLANTED, "-n", 3)
    assert status == 1
    assert "1 of the prompts cannot be traced" in err
    status, _, err = run(*PLANTED, "-n", 4, "--sources", "L9")
    assert status == 1
    assert "--sources must be heads as (layer, head)" in err
    status, _, err = run(*PLANTED, "-n", 4, "--component", "logits")
    assert status == 1
    assert "components must be of residual, attention, mlp, heads" in err
