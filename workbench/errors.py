"""Every mistake a user can make raises `WorkbenchError` or one of these children.

A message says what was wanted, what came, where, and what to do next. An `assert` is for our own
invariants and never for a user's mistake.
"""


class WorkbenchError(Exception):
    """Base of every error a user can cause."""


class ArgumentError(WorkbenchError, TypeError):
    """A call with an argument that cannot be what it says, or with one too many."""


class PromptError(WorkbenchError):
    """A prompt, or a file of prompts, that cannot be used as it is."""


class ModelError(WorkbenchError):
    """A checkpoint that cannot be loaded, or an architecture that is not supported."""


class SelfCheckError(ModelError):
    """A model that failed to prove, at load, that its masks act and that looking changes nothing."""


class MaskError(WorkbenchError):
    """A mask that cannot be built, or that could not change anything."""


class RunError(WorkbenchError):
    """A stored run that is damaged, incomplete, of another schema, or lacks what was asked of it."""


class CriterionError(WorkbenchError):
    """A criterion or rule that does not exist, or a pair of them that has no meaning."""


class DetectorError(WorkbenchError):
    """A detector that cannot be fitted, loaded, or applied to this model."""


class StudyError(WorkbenchError):
    """A study that does not exist, or lacks what it needs."""


class FigureError(WorkbenchError):
    """A figure that cannot be drawn or written."""


def lacking(error: ModuleNotFoundError) -> Exception:
    """What to say where a package is not installed; an error of our own modules is itself.

    The viewer, which looks at stored runs, comes without what loads and masks models.
    """
    name = str(error.name)
    if name.startswith("workbench"):
        return error
    return WorkbenchError(
        f"This needs {name}, which is not installed: lvlm-workbench-viewer only looks at stored runs. In its place "
        "install the whole workbench: pip uninstall lvlm-workbench-viewer, then pip install lvlm-workbench."
    )
