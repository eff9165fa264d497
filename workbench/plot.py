"""Pictures on Axes of your own: `wb.plot.maps(scores, criterion="deflection", projection="query", ax=ax)`.

Each function draws one panel, keeps your matplotlib settings (`rcParams`), and returns the Axes.

Examples:
    >>> import workbench as wb
    >>> run = wb.sweep(wb.load_model("planted"), wb.load_prompts("planted", n=24), progress=False)
    >>> scores = wb.score(run, "deflection")
    >>> ax = wb.plot.maps(scores, criterion="deflection", projection="query", value="difference")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('head', 'layer')
"""

from workbench.views.figures.displays import agreement, criteria, maps, roc, selectivity

__all__ = ["agreement", "criteria", "maps", "roc", "selectivity"]
