"""`defence`: what guards do to attack success and to benign prompts."""

from typing import Any

import numpy as np
import pandas as pd

from workbench.comparison.arena import arena
from workbench.comparison.differences import tested
from workbench.studies import needs
from workbench.studies.detection import ALL, by_family, left_out, whole
from workbench.studies.material import Material
from workbench.studies.record import Beside, Findings, StudyRecord
from workbench.views.figures import studies as figures

DETECTORS = ("one-head", "sahs", "hidden-detect")
GUARDS = ("recipe", "indicating", "safety-prompt", "ecso")
TOKENS = 16
NONE = "no guard"
SHOWN = {"asr_guarded": "attack success", "benign_refusal": "benign refused"}


def find(material: Material) -> Findings:
    """Replies to attacks and benign prompts under guards, those that need a detector behind three of them."""
    table = arena(
        material.model,
        material.prompts,
        DETECTORS,
        GUARDS,
        judges=(material.judge,),
        max_new_tokens=TOKENS,
        costed=0,
        run=material.run,
        out=material.folder("arena"),
        progress=material.progress,
        seed=material.seed,
    )
    guarded = [*dict.fromkeys(table.loc[table["measure"] == "asr_guarded", "detector"])]
    tests = tested([{"test": name, "p_value": _apart(table, name)} for name in guarded])
    plain = [("asr_unguarded", "asr_guarded"), ("benign_refusal_unguarded", "benign_refusal")]
    first = [
        table[(table["measure"] == measure) & (table["detector"] == guarded[0])].assign(detector=NONE, measure=shown)
        for measure, shown in plain
    ]
    kept = table[table["measure"].isin([*SHOWN, "benign_quality_flagged", "benign_quality_forced"])]
    whole_table = pd.concat([*first, kept], ignore_index=True)
    says = _says(whole_table, guarded) + left_out(table)
    return Findings(whole_table, says, tests, _beside(whole_table, material))


def _apart(table: pd.DataFrame, name: str) -> float:
    """Fisher's exact test: are unsafe prompts stopped more often than benign ones are refused?"""
    from scipy.stats import fisher_exact

    counts = []
    for measure, stopped in (("asr_guarded", lambda share: 1 - share), ("benign_refusal", lambda share: share)):
        row = whole(table, measure).set_index("detector").loc[name]
        hits = round(stopped(row["value"]) * row["n"])
        counts.append([hits, int(row["n"]) - hits])
    return float(fisher_exact(counts, alternative="greater").pvalue)


def _says(table: pd.DataFrame, guarded: list[str]) -> str:
    success, refused = (whole(table, m).set_index("detector")["value"] for m in SHOWN)
    told = [f"{name} {100 * success[name]:.0f} % and {100 * refused[name]:.0f} %" for name in guarded]
    return (
        f"Without a guard the model complies with {100 * success[NONE]:.0f} % of unsafe prompts and refuses "
        f"{100 * refused[NONE]:.0f} % of safe ones; with one: {', '.join(told)}."
    )


def _beside(table: pd.DataFrame, material: Material) -> tuple[Beside, ...]:
    success = whole(table, "asr_guarded").set_index("detector")["value"]
    ours = f"{100 * success[NONE]:.0f} to {100 * success.get('one-head', np.nan):.0f} %"
    return (
        Beside(
            "attack success without and with one head and the recipe",
            "26 to 0 (MaliciousInstruct), 19 to 1 (JailbreakBench), 15.79 to 0 % (AdvBench), Qwen2-VL-7B, text only",
            ours,
            f"model ({material.model.name}), prompts, judge ({material.judge} against Llama Guard), reply length",
            "rebuttal of 'One Head to Rule Them All' (NeurIPS 2025); Table 2's numbers were not found",
        ),
        Beside(
            "attack success under SAHs' guard",
            "over 80 % to 1–5 %",
            f"{100 * success[NONE]:.0f} to {100 * success.get('sahs', np.nan):.0f} % (behind the recipe)",
            f"model ({material.model.name}), prompts, judge, and the recipe in place of their indicating prompt",
            "SAHs (arXiv 2501.02029), as summarised",
        ),
        Beside(
            "benign prompts refused under a safety prompt",
            "0 to 18 % for a safety prompt, 97 to 100 % for combined defences",
            f"{100 * whole(table, 'benign_refusal').set_index('detector')['value'].get('safety-prompt', np.nan):.0f} %",
            f"model ({material.model.name}), prompts, wording",
            "arXiv 2606.10904, abstract",
        ),
    )


def draw(findings: Findings) -> Any:
    parts = [by_family(findings.table, m).assign(measure=words) for m, words in SHOWN.items()]
    table = pd.concat(parts, ignore_index=True)
    shown = table[table["set"] == ALL]
    return figures.dots(shown, rows="detector", panels="measure", x="share, 95 % interval", limits=(-0.02, 1.02))


STUDY = StudyRecord(
    "defence",
    asks="How many attacks still succeed behind each guard, and what do benign prompts pay?",
    source="'One Head to Rule Them All' (NeurIPS 2025), Table 2; reviews (benign utility)",
    runs="the arena's guards: the recipe behind three detectors, and guards that need no detector",
    fails="Judges by phrases take nonsense for compliance. A guard in words that the model does not know is left out.",
    find=find,
    draw=draw,
    needs=(needs.REPLIES,),
    cost=0.4,
)
