"""What the tests of studies share."""

import pytest

from workbench.studies import adaptive, flow, head_claims, masked_success, swap


@pytest.fixture
def small_studies(monkeypatch):
    """Studies of fewer heads, draws and steps than they have."""
    monkeypatch.setattr(masked_success, "SIZES", (1,))
    monkeypatch.setattr(masked_success, "CONTROLS", 2)
    monkeypatch.setattr(flow, "SIZES", (1,))
    monkeypatch.setattr(flow, "CONTROLS", 2)
    monkeypatch.setattr(swap, "SIZES", (1,))
    monkeypatch.setattr(swap, "CONTROLS", 1)
    for module, fewer in (
        (adaptive, {"EPS": (8,), "STEPS": (1,), "TOKENS": 2, "MOST": 12, "OTHERS": ("last-layer",), "TRANSFER": ()}),
        (head_claims, {"K": 1, "CONTROLS": 2, "STEPS": 1, "TOKENS": 6, "LEARNING_STEPS": 60, "MOST": 12}),
    ):
        for name, value in fewer.items():
            monkeypatch.setattr(module, name, value)
