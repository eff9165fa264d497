"""Studies of the planted and of the null model, each made once a process, and a look into their tables."""

from functools import cache

import pandas as pd

from tests.unit import planted_parts
from workbench.studies import Material, Study, make_study


@cache
def material(name: str) -> Material:
    """Beside planted stand null and itself, beside null only itself."""
    planted, null = planted_parts.model("planted"), planted_parts.model("null")
    model, others = (planted, (null, planted)) if name == "planted" else (null, (null,))
    return Material(model, planted_parts.prompts(96 if name == "planted" else 72), others, progress=False)


@cache
def made(name: str) -> Study:
    return make_study(name, material("planted"))


def rows(study: Study, **keys: object) -> pd.DataFrame:
    table = study.table
    for name, value in keys.items():
        table = table[table[name] == value]
    assert len(table), f"{study.name} has no rows with {keys}"
    return table


def one(study: Study, **keys: object) -> float:
    found = rows(study, **keys)
    assert len(found) == 1
    return float(found["value"].iloc[0])
