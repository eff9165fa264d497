"""The studies: every table and figure of the papers, and every question of their reviewers, one call each.

Each file of studies says in `STUDY` (or `STUDIES`) what it adds; a new file is named once, here.

Examples:
    >>> import workbench as wb
    >>> {record.name: record.asks for record in wb.studies.list_studies()}["head-count"]
    'Is one head enough, do more help or hurt, and how much hangs on which of them is drawn?'
"""

from typing import Annotated, Any

from workbench.checking import Converted, OneOf, Seed, checked
from workbench.comparison.differences import tested
from workbench.errors import StudyError
from workbench.models.hooked import HookedLVLM
from workbench.models.loading import SomeModel, load_model
from workbench.prompts.prompt import PromptSet, as_prompts
from workbench.registry import Registry
from workbench.studies import (
    adaptive,
    benign_cost,
    defence,
    degradation,
    detection,
    flow,
    graded,
    head_claims,
    head_count,
    maps,
    masked_success,
    measures,
    modality,
    probe_curves,
    projections,
    published_split,
    read_out,
    reselect,
    sahara,
    selection_set,
    shared_heads,
    swap,
    time,
    transfer,
)
from workbench.studies.material import Material
from workbench.studies.record import Beside, Findings, Need, Study, StudyRecord
from workbench.sweeps.sweep import SomePrompts

__all__ = [
    "STUDIES",
    "Beside",
    "Findings",
    "Material",
    "Need",
    "Study",
    "StudyRecord",
    "list_studies",
    "make_study",
    "register_study",
    "study",
    "tested",
]

STUDIES: Registry[StudyRecord] = Registry(
    "study",
    (
        maps.STUDY,
        projections.STUDY,
        masked_success.STUDY,
        measures.STUDY,
        detection.STUDY,
        time.STUDY,
        defence.STUDY,
        head_count.STUDY,
        *graded.STUDIES,
        reselect.STUDY,
        selection_set.STUDY,
        modality.STUDY,
        read_out.STUDY,
        probe_curves.STUDY,
        transfer.STUDY,
        degradation.STUDY,
        shared_heads.STUDY,
        benign_cost.STUDY,
        published_split.STUDY,
        sahara.STUDY,
        flow.STUDY,
        swap.STUDY,
        adaptive.STUDY,
        head_claims.STUDY,
    ),
    error=StudyError,
)
register_study = STUDIES.register
"""Make a study known in this process; one of the same name is replaced."""
list_studies = STUDIES.records
"""All studies, in the order in which `workbench study all` makes them."""


def make_study(name: str, material: Material) -> Study:
    """A study from material that others share.

    Raises:
        StudyError: For a study that does not exist, or needs what is not there.
    """
    record = STUDIES.named(name)
    if lacking := record.lacking(material):
        raise StudyError(f"The study {name} {'; it '.join(lacking)}.")
    return Study(record, record.find(material), material.about)


def _as_others(value: Any) -> tuple[HookedLVLM | PromptSet, ...]:
    given = [value] if isinstance(value, str | HookedLVLM | PromptSet) else list(value)
    return tuple(
        load_model(other) if isinstance(other, str) else other if isinstance(other, HookedLVLM) else as_prompts(other)
        for other in given
    )


@checked
def study(
    name: Annotated[str, OneOf(lambda: STUDIES)],
    model: SomeModel,
    prompts: SomePrompts,
    *,
    others: Annotated[Any, Converted(_as_others)] = (),
    seed: Seed = 0,
    progress: bool = True,
) -> Study:
    """One study: a table, a figure, a sentence, and published values beside ours.

    Args:
        name: As `workbench study list` has it, or `wb.studies.list_studies()`.
        model: From `wb.load_model`, or a name or path that it takes.
        prompts: With both labels, from `wb.load_prompts`, or a name or path that it takes. Without declared splits they
            are dealt, seeded.
        others: What some studies need besides: other models (or their names), other prompt sets.
        seed: Of every draw.
        progress: Show bars with the time left.

    Returns:
        The study: `.table`, `.figure()`, `.says`; also `.tests` (corrected), `.found`, `.published`.

    Raises:
        StudyError: For a study that needs what is not there, which it names.

    Examples:
        >>> import workbench as wb
        >>> model, prompts = wb.load_model("planted"), wb.load_prompts("planted", n=96)
        >>> found = wb.study("maps", model, prompts, progress=False)
        >>> found.found  # heads that turn the state further on unsafe prompts than on safe ones
        ('L3H1',)
        >>> found.figure()
        <Figure size 330x180 with 3 Axes>
    """
    assert isinstance(model, HookedLVLM) and isinstance(prompts, PromptSet)  # noqa: PT018 - converted
    return make_study(name, Material(model, prompts, others, seed=seed, progress=progress))
