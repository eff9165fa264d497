"""Fixtures of the tests of runs."""

from dataclasses import replace

import pytest


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two prompts, so that a run of six has three."""
    from workbench.sweeps import sweep

    plan = sweep.plan
    monkeypatch.setattr(sweep, "plan", lambda model, longest, **kw: replace(plan(model, longest, **kw), block=2))
