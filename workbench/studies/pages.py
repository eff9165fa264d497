"""What the command line writes of studies: a table, a figure and a caption each, and one page over all.

The same studies give the same bytes: numbers have six digits, nothing says when it was made, and figures are drawn from
what is stored. Measured times lie in files of their own.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import StudyError
from workbench.plain import plain, write_table
from workbench.studies.record import Beside, Findings, Study, StudyRecord
from workbench.views.figures.captions import literal
from workbench.views.figures.studies import write as write_figure

DIGITS = 6
SHOWN_ROWS = 40  # rows of a table on the page; the CSV has all
PAGE = "index.html"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;"
    "background:#fff}table{border-collapse:collapse;font-size:.8rem;margin:1rem 0}"
    "td,th{border-bottom:1px solid #ddd;padding:.2rem .5rem;text-align:left;vertical-align:top}"
    ".wide{overflow-x:auto}img{max-width:100%;background:#fff}nav a{margin-right:.8rem;display:inline-block}"
    ".says{font-weight:600}.quiet{color:#555}"
)
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def store(study: Study, out: Path, key: str) -> Study:
    """Write a study into the folder `out`; returns it as it is read back."""
    out.mkdir(parents=True, exist_ok=True)
    for name, table in study.findings.apart.items():
        write_table(table, out / f"{name}.csv")
    record = {
        "key": key,
        "about": study.about,
        "says": study.says,
        "table": _packed(study.table),
        "tests": _packed(study.tests),
        "beside": [vars(b) for b in study.findings.beside],
    }
    stored = _unpacked(study.record, record)
    write_table(stored.table, out / f"{study.name}.csv")
    write_figure(stored.figure(), out / f"{study.name}.pdf")
    (out / f"{study.name}.md").write_text(_caption(stored), encoding="utf-8")
    (out / f"{study.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")  # last: it is whole
    return stored


def stored(record: StudyRecord, out: Path, key: str) -> Study | None:
    """The study as `store` wrote it, if it was made of the same material; None where it has to be made.

    Raises:
        StudyError: For a file that is none of ours.
    """
    path = out / f"{record.name}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _unpacked(record, found) if found["key"] == key else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{path} does not hold a study ({type(error).__name__}: {plain(error)}). Remove it, and the study is made "
            "again."
        ) from error


def write_page(studies: Sequence[Study], left_out: Mapping[str, str], out: Path) -> Path:
    """One HTML page over all studies: opens from disk, asks for nothing, runs nothing."""
    links = " ".join(f'<a href="#{s.name}">{s.name}</a>' for s in studies)
    parts = [f"<h1>Studies</h1><p>{html.escape(plain(studies[0].about)) if studies else ''}</p><nav>{links}</nav>"]
    parts += [_section(study) for study in studies]
    if left_out:
        rows = "".join(f"<li>{html.escape(plain(n))}: {html.escape(plain(why))}</li>" for n, why in left_out.items())
        parts.append(f"<h2>Left out</h2><ul>{rows}</ul>")
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>Studies</title>'
    page = (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(parts)}</body></html>'
    )
    path = out / PAGE
    path.write_text(page + "\n", encoding="utf-8")
    return path


def _section(study: Study) -> str:
    words = {name: html.escape(plain(getattr(study.record, name))) for name in ("asks", "source", "runs", "fails")}
    parts = [
        f'<h2 id="{study.name}">{study.name}</h2><p>{words["asks"]} <span class="quiet">{words["source"]}.</span></p>',
        f'<p class="says">{html.escape(plain(study.says))}</p>',
        f'<img alt="{html.escape(plain(study.says), quote=True)}" src="data:image/svg+xml;base64,{_picture(study)}">',
    ]
    if len(study.published):
        parts.append(f"<h3>Published beside ours</h3>{_html(study.published)}")
    if len(study.tests):
        found = "; ".join(study.found) or "nothing"
        parts.append(
            f"<p>{len(study.tests)} tests, corrected for that many; found at 0.05: {html.escape(plain(found))}.</p>"
        )
    more = f"<p>The first {SHOWN_ROWS} of {len(study.table)} rows.</p>" if len(study.table) > SHOWN_ROWS else ""
    table = _html(study.table.head(SHOWN_ROWS))
    parts.append(f"<details><summary>Table ({study.name}.csv)</summary>{more}{table}</details>")
    parts.append(f'<p class="quiet">What is run: {words["runs"]}. How it fails: {words["fails"]}</p>')
    return "<section>" + "".join(parts) + "</section>"


def _picture(study: Study) -> str:
    with TemporaryDirectory() as folder:
        return base64.b64encode(write_figure(study.figure(), Path(folder) / "figure.svg").read_bytes()).decode()


def _html(table: pd.DataFrame) -> str:
    shown = table.map(_cell).rename(columns=lambda name: plain(name).replace("_", " "))
    return f'<div class="wide">{shown.to_html(index=False, border=0)}</div>'  # pandas escapes


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else plain(value)


def _caption(study: Study) -> str:
    record = study.record
    lines = [
        f"# {study.name}\n",
        f"**{literal(record.asks)}** {literal(study.says)}\n",
        f"{literal(study.about)} 95 % intervals where a value has one.\n",
        f"- From: {literal(record.source)}.",
        f"- What is run: {literal(record.runs)}.",
        f"- How it fails: {literal(record.fails)}",
    ]
    if len(study.tests):
        found = literal("; ".join(study.found)) or "nothing"
        lines.append(f"- {len(study.tests)} tests, corrected for that many; found at 0.05: {found}.")
    if len(study.published):
        lines.append("\n| what | published | ours | what differs | source |\n|---|---|---|---|---|")
        lines += ["| " + " | ".join(literal(cell) for cell in row) + " |" for row in study.published.to_numpy()]
    return "\n".join(lines) + "\n"


def _packed(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "columns": list(table.columns),
        "rows": [[_rounded(cell) for cell in row] for row in table.to_numpy(object)],
    }


def _rounded(cell: Any) -> Any:
    if isinstance(cell, float | np.floating):
        return float(f"{cell:.{DIGITS}g}") if np.isfinite(cell) else None
    return cell.item() if isinstance(cell, np.generic) else cell


def _unpacked(record: StudyRecord, found: Mapping[str, Any]) -> Study:
    table, tests = (pd.DataFrame(found[part]["rows"], columns=found[part]["columns"]) for part in ("table", "tests"))
    for name in table.columns[table.isna().all()]:
        table[name] = table[name].astype(float)
    beside = tuple(Beside(**b) for b in found["beside"])
    return Study(record, Findings(table, found["says"], tests.astype({"p_corrected": float}), beside), found["about"])
