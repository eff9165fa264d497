"""What is asked of the page of a report."""

PLANTED, DECOY = (20, 3), (0, 3)
HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">\u202e"
BOARD = "document.getElementById('workbench').workbench"
STATE = f"{BOARD}.state"
COUNTS = f"({{...{BOARD}.counts}})"


def chosen(page):
    return page.evaluate(f"JSON.parse(JSON.stringify({STATE}))")


def at_cell(page, layer, head, number=0):
    """Where a cell of a map lies on the screen."""
    x, y = page.evaluate(
        """([l, h, i]) => {
            const panel = document.getElementById('workbench').workbench.grid.panels[i];
            const [x, y] = panel.place.corner([l, h]);
            const box = panel.stage.getBoundingClientRect();
            return [box.left + x + panel.place.w / 2, box.top + y + panel.place.h / 2];
        }""",
        [layer, head, number],
    )
    return x, y
