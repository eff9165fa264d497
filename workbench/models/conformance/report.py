"""Proof, check by check, that masks mean on a model what they should: `conformance`, for `workbench check`.

Each check compares two roads to one number, or shows that an edit acts. The checks themselves, one function each, are
in `workbench.models.conformance.checks`; float64 (as the tiny models have) leaves no room for excuses about rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from workbench.errors import WorkbenchError
from workbench.models.conformance import checks, forms  # noqa: F401  # registers them
from workbench.models.conformance.probe import CHECKS, Failed, NotApplicable, Probe
from workbench.models.hooked import HookedLVLM
from workbench.models.precision import double_kept
from workbench.plain import plain

MARKS = {"ok": "green", "failed": "bold red", "n/a": "dim"}


@dataclass(frozen=True)
class Finding:
    """One check's outcome.

    Attributes:
        check: What was checked.
        verdict: `"ok"`, `"failed"`, or `"n/a"` where the family gives nothing to check.
        detail: Numbers behind the verdict, or what went wrong.
    """

    check: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Report:
    """The findings on one model; `ok` when none failed."""

    model: str
    family: str
    dtype: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.verdict == "failed")

    @property
    def verdict(self) -> str:
        """One sentence."""
        passed = sum(f.verdict == "ok" for f in self.findings)
        if self.ok:
            return f"{self._which}: conforms, {passed} checks passed"
        failed = ", ".join(f.check for f in self.failures)
        return f"{self._which}: DOES NOT CONFORM, {len(self.failures)} checks failed: {failed}"

    @property
    def _which(self) -> str:
        return plain(f"{self.model} ({self.family}, {self.dtype})")

    def table(self) -> Table:
        table = Table(title=Text(self._which), title_justify="left")
        for name in ("check", "verdict", "detail"):
            table.add_column(name, overflow="fold")
        for finding in self.findings:
            # Text, not markup: a message may quote a prompt or a token in square brackets.
            table.add_row(
                finding.check, Text(finding.verdict, style=MARKS[finding.verdict]), Text(plain(finding.detail))
            )
        return table


def conformance(model: HookedLVLM, *, only: Sequence[str] = ()) -> Report:
    """Run the checks on a loaded model. Nothing is raised for a failed one; look at `ok`.

    Args:
        only: Names of the checks to run; all by default.
    """
    work = model.work
    model.work = type(work)()
    findings = []
    try:
        with double_kept(model.dtype):
            probe = Probe(model)
            for name, check in CHECKS.items():
                if only and name not in only:
                    continue
                findings.append(_run(name, check, probe))
    finally:
        model.work = work
    return Report(model.name, model.family.name, str(model.dtype).removeprefix("torch."), tuple(findings))


def _run(name: str, check: object, probe: Probe) -> Finding:
    try:
        return Finding(name, "ok", check(probe))  # type: ignore[operator]
    except NotApplicable as reason:
        return Finding(name, "n/a", str(reason))
    except Failed as reason:
        return Finding(name, "failed", str(reason))
    # A check that cannot even be carried out is a failed check, whatever transformers or torch raised in it.
    except (
        WorkbenchError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        NotImplementedError,
    ) as error:
        return Finding(name, "failed", f"{type(error).__name__}: {error}")
