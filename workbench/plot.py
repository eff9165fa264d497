"""Pictures on Axes of your own: `wb.plot.maps(scores, criterion="deflection", projection="query", ax=ax)`.

Each function draws one panel, keeps your matplotlib settings (`rcParams`), and returns the Axes. `wb.plot.style("acl")`
sets widths and letters of a venue for the length of a block. `wb.plot.screen` has the same pictures by plotly, to hover
over and zoom in a notebook.

Examples:
    >>> import workbench as wb
    >>> run = wb.sweep(wb.load_model("planted"), wb.load_prompts("planted", n=24), progress=False)
    >>> scores = wb.score(run, "deflection")
    >>> ax = wb.plot.maps(scores, criterion="deflection", projection="query", value="difference")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('head', 'layer')
"""

from workbench.views.figures import screen
from workbench.views.figures.displays import agreement, criteria, heads, maps, roc, selectivity
from workbench.views.figures.flows import save_trace_figures, trace
from workbench.views.figures.style import style

__all__ = [
    "agreement", "criteria", "heads", "maps", "roc", "save_trace_figures", "screen", "selectivity", "style", "trace",
]  # fmt: skip
