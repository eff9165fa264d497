"""An unknown family says how to add it, and the walk-through in CONTRIBUTING.md works when followed."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest
import torch

from workbench.errors import ModelError
from workbench.models.conformance.report import conformance
from workbench.models.families import FAMILIES, family_of, register_family
from workbench.models.tiny import build_tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_trace():
    """Families registered in the test are gone after it."""
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def walk_through() -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.search(r"<!-- a test runs this block: the family -->\n```python\n(.*?)^```", text, re.M | re.S)[1]


@pytest.fixture
def granite(no_trace):
    """Run the walk-through's block, with lines changed where a test asks for it."""

    def follow(**changes):
        source = walk_through()
        for old, new in changes.values():
            assert old in source
            source = source.replace(old, new)
        defined: dict = {}
        exec(compile(source, "CONTRIBUTING.md", "exec"), defined)
        for family in defined["FAMILIES"]:
            register_family(family)
        return build_tiny("granite", dtype=torch.float64)

    return follow


def test_the_walk_through_adds_a_family(granite):
    assert "granite" not in FAMILIES
    report = conformance(granite())
    assert report.ok, [(f.check, f.detail) for f in report.failures]


def test_and_a_forgotten_fact_is_named(granite):
    report = conformance(granite(forget=("logits=logits, ", "")))
    # The bridge makes its own logits, so it disagrees too.
    assert {f.check for f in report.failures} >= {"parity with transformers: logits"}


def test_the_walk_through_is_as_short_as_it_says():
    assert len(walk_through().strip().splitlines()) <= 30


def test_an_unknown_family_lists_the_known_and_shows_the_lines_that_add_it():
    with pytest.raises(ModelError, match=r"No family for model type 'seed_oss'\. Supported: aya_vision, ") as caught:
        family_of("seed_oss")
    message = str(caught.value)
    assert all(name in message for name in FAMILIES)
    assert 'name="seed_oss"' in message
    assert "SeedOssForCausalLM" in message


def test_the_lines_shown_are_python_and_run(no_trace):
    """For a type whose class is named as transformers names classes, they work as they stand."""
    with pytest.raises(ModelError) as caught:
        family_of("olmo")
    shown = str(caught.value).split("\n", 2)[2]
    source = "\n".join(line.removeprefix("    ") for line in shown.splitlines())
    assert 20 <= len(source.strip().splitlines()) <= 40
    source = source.replace("print(", "verdict = (")
    scope: dict = {}
    FAMILIES.pop("olmo", None)
    exec(compile(source, "shown", "exec"), scope)
    assert scope["verdict"].startswith("tiny olmo (olmo, float32): conforms"), scope["verdict"]


def test_entry_points_name_our_adapters():
    from workbench.models.families.adapters import OURS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["entry-points"]["transformer_lens.architectures"]
    assert declared.keys() == OURS.keys()
    for architecture, where in declared.items():
        module, name = where.split(":")
        assert getattr(importlib.import_module(module), name) is OURS[architecture]


def test_transformer_lens_finds_our_adapters_by_its_own_means():
    from transformer_lens.factories.architecture_adapter_factory import (
        SUPPORTED_ARCHITECTURES,
        ArchitectureAdapterFactory,
    )

    from workbench.models.families.adapters import OURS, register_adapters

    assert not OURS.keys() & SUPPORTED_ARCHITECTURES.keys(), "TransformerLens has one of these by now: use its own"
    register_adapters()
    assert OURS.items() <= ArchitectureAdapterFactory._adapters.items()
