"""A study: one question about a model's heads, with a table, a figure, a sentence, and what was published beside it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from workbench.studies.material import Material

LEVEL = 0.05  # corrected p-value from which on a test has found something


@dataclass(frozen=True)
class Beside:
    """A published value and ours, and what keeps the two from being the same measurement.

    Attributes:
        what: What was measured.
        published: As published, with the model it was measured on.
        ours: The same here.
        differs: Model, data, sizes, and whatever else is another.
        source: Paper and place.
    """

    what: str
    published: str
    ours: str
    differs: str
    source: str


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        table: Tidy: one row a measurement, with its 95 % interval where it has one.
        says: What the numbers say, in sentences made from them.
        tests: One row a test for a difference between unsafe and safe prompts (or what else the study asks about):
            `test`, `p_value`, and `p_corrected`, by Holm's method over the rows unless the study corrects otherwise.
        beside: Published values and ours.
        apart: Tables of measured times by name, which no second run repeats; written as files of their own.
    """

    table: pd.DataFrame
    says: str
    tests: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["test", "p_value", "p_corrected"]))
    beside: tuple[Beside, ...] = ()
    apart: Mapping[str, pd.DataFrame] = field(default_factory=dict)


@dataclass(frozen=True)
class Need:
    """What a study cannot do without.

    Attributes:
        words: In a sentence that begins with "needs".
        lacking: From the material, why it is not there; empty where it is.
    """

    words: str
    lacking: Callable[["Material"], str]


@dataclass(frozen=True)
class StudyRecord:
    """One study as the registry, the command line and the pages know it.

    Attributes:
        name: In kebab case, unique.
        asks: The question.
        source: Where it comes from: figure or table of a paper, a review, or this project.
        runs: What is computed.
        fails: When its answer is worth nothing.
        find: Computes it.
        draw: Draws its findings; from them alone, so that stored ones are drawn the same.
        needs: What it cannot do without, besides a model and prompts of both labels.
        cost: How long it takes, about, in sweeps of a pass over all prompts; for the time that is left.
    """

    name: str
    asks: str
    source: str
    runs: str
    fails: str
    find: Callable[["Material"], Findings]
    draw: Callable[[Findings], Any]
    needs: Sequence[Need] = ()
    cost: float = 0.1

    def lacking(self, material: "Material") -> list[str]:
        """What it needs and the material lacks, as `needs …: …`."""
        return [f"needs {need.words}: {why}" for need in self.needs if (why := need.lacking(material))]


@dataclass(frozen=True, eq=False)
class Study:
    """A study that was made.

    Attributes:
        record: The question.
        findings: The answer.
        about: One sentence: model, prompts, mask.
    """

    record: StudyRecord
    findings: Findings
    about: str

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def table(self) -> pd.DataFrame:
        return self.findings.table

    @property
    def says(self) -> str:
        return self.findings.says

    @property
    def tests(self) -> pd.DataFrame:
        return self.findings.tests

    @property
    def found(self) -> tuple[str, ...]:
        """The tests that found something, corrected for how many there are: p under 0.05."""
        return tuple(self.tests.loc[self.tests["p_corrected"] < LEVEL, "test"])

    @property
    def published(self) -> pd.DataFrame:
        """Published values beside ours: what, published, ours, differs, source."""
        columns = ["what", "published", "ours", "differs", "source"]
        return pd.DataFrame([[getattr(b, c) for c in columns] for b in self.findings.beside], columns=columns)

    def figure(self) -> Any:
        """The figure, a matplotlib `Figure` in the size of a printed page."""
        return self.record.draw(self.findings)

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {len(self.table)} rows: {self.says})"
