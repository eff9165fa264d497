"""What is said of a set before it is used: planted overlaps are told with their numbers, and nothing else is."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import workbench as wb
from workbench.cli.prompts import Asked, chosen
from workbench.cli.views import score_command
from workbench.comparison import compare
from workbench.comparison.arena_tables import latex
from workbench.criteria import detection_table, score
from workbench.errors import PromptError, WorkbenchError
from workbench.prompts.caveats import caveats
from workbench.runs.reading import caveats_of
from workbench.studies import Material


def picture(k: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(k).integers(0, 255, (6, 8, 3), dtype=np.uint8))


def prompts(source: str, texts: list[str], *, label: str = "safe", first: int = 0, **fields) -> list[wb.Prompt]:
    return [
        wb.Prompt(f"{source}-{k}", text, picture(first + k), label=label, source=source, **fields)
        for k, text in enumerate(texts)
    ]


def test_what_sources_share_is_told_with_its_number():
    one = prompts("one", ["What is it?", "name it", "count it"])
    other = prompts("other", ["what is IT", "draw it", "count it."], first=2, label="unsafe")
    assert caveats([*one, *other]) == ["the sources one and other share 1 pictures and 2 texts"]
    assert caveats(one) == caveats([]) == []


def test_what_splits_share_is_told():
    chosen_on = prompts("set", ["What is it?", "name it"], split="selection")
    tested_on = prompts("set2", ["name it", "draw it"], first=9, split="test")
    assert "the splits selection and test share 1 texts" in caveats([*chosen_on, *tested_on])


@pytest.mark.parametrize(("different", "count", "told"), [(11, 500, True), (30, 500, False), (20, 24, False)])
def test_a_label_of_few_questions_is_told(different, count, told):
    texts = [f"question {k % different}" for k in range(count)]
    many = [wb.Prompt(f"p{k}", text, source="sharegpt4v") for k, text in enumerate(texts)]
    said = f"the {count} safe prompts ask {different} different texts: a rate on them tests few questions"
    assert caveats(many) == ([said] if told else [])
    aside = prompts("vlsafe", ["do it"], label="unsafe")
    assert caveats([*many, *aside]) == ([f"sharegpt4v: {said}"] if told else [])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The path of a run whose safe prompts ask two questions; and its prompts."""
    drawn = [replace(p, split="", pair_id="") for p in wb.load_prompts("planted", n=60)]
    asked = [
        replace(p, text=f"what {k % 4}", image=picture(k)) if p.label == "safe" else p for k, p in enumerate(drawn)
    ]
    path = tmp_path_factory.mktemp("caveats") / "run.zarr"
    wb.sweep("planted", asked, out=path, progress=False)
    return path, asked


@pytest.mark.slow
def test_every_table_of_a_run_begins_with_what_was_said_of_its_prompts(stored):
    path, asked = stored
    run = wb.open_run(path)
    assert caveats_of(run) == caveats(asked) != []
    assert score(run, "deflection", bootstrap=0, permutations=0).attrs["caveats"] == caveats(asked)
    table = detection_table(run, criteria="deflection", rules="auroc", bootstrap=0)
    assert table.attrs["caveats"] == caveats(asked)
    console = Console(record=True, width=200)
    score_command(console, str(path), criteria=["ships"], rule="auroc", top=1, out=None, seed=0)
    printed = console.export_text()
    assert printed.index("Mind: the 30 safe prompts ask 2 different texts") < printed.index("First 1 heads")


@pytest.mark.slow
def test_so_does_what_is_made_without_a_stored_run(stored):
    _, asked = stored
    wanted = caveats(asked)
    contest = wb.arena("planted", asked, ("ships",), bootstrap=5, costed=0, progress=False)
    assert contest.attrs["caveats"] == wanted
    assert latex(contest).startswith(f"% Mind: {wanted[0]}\n")
    assert wb.find_heads("planted", asked, k=1, projection="query", progress=False).attrs["caveats"] == wanted
    about = Material(wb.load_model("planted"), wb.PromptSet(asked), progress=False).about
    assert about.endswith(" ".join(f"Mind: {sentence}." for sentence in wanted))


@pytest.mark.slow
def test_so_do_pages_and_figures(stored, tmp_path):
    path, asked = stored
    run = wb.open_run(path)
    assert compare(run, criteria=("ships",), bootstrap=5).attrs["caveats"] == caveats(asked)
    scores = score(run, "deflection", bootstrap=0, permutations=0)
    wb.save_figures(run, tmp_path, scores=scores, formats=("png",), only="*maps*")
    captions = (tmp_path / "captions.md").read_text()
    assert captions.index("Mind: the 30 safe prompts ask 2 different texts") < captions.index("## ")
    page = wb.save_report(run, tmp_path / "report.html", scores=scores).read_text()
    manifest = json.loads(page.partition('id="manifest">')[2].partition("</script>")[0])
    assert [one["caveats"] for one in manifest["runs"]] == [caveats(asked)]


@pytest.mark.slow
@pytest.mark.parametrize("recorded", ["not json", "3", '[1, "[bold]x"]', None])
def test_what_a_stored_run_says_of_its_prompts_is_data(stored, recorded):
    run = wb.open_run(stored[0]).assign_attrs(caveats=recorded)
    assert caveats_of(run) == (["[bold]x"] if recorded and "bold" in recorded else [])


def test_several_sets_are_mixed_and_capped_by_source(tmp_path):
    for name, label in (("a", "unsafe"), ("b", "safe")):
        rows = [f'{{"text": "{name} {k}", "label": "{label}", "split": "test"}}' for k in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    names = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    mixed = Asked(names, per_source=5, split="test").load(seed=1)
    assert {(p.source, p.label) for p in mixed} == {("a", "unsafe"), ("b", "safe")}
    assert len(mixed) == 10
    assert mixed.content_hash() == Asked(names, per_source=5).load(seed=1).content_hash()
    assert len(Asked(names, n=6).load()) == 6
    assert len(chosen(names[0])) == 12
    assert Asked(names, part=["figstep=tiny"])._part("figstep:DIR") == "tiny"
    assert Asked(names, part=["figstep=tiny", "SD"])._part("mm-safetybench:DIR") == "SD"
    with pytest.raises(WorkbenchError, match="image=image_path"):
        Asked(names, columns=["image"]).load()


def test_a_set_of_which_no_picture_is_there_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "what", "label": "safe", "image": "a.png"}')
    with pytest.raises(PromptError, match="no row is left; 1 pictures are in none of the places"):
        wb.load_prompts(tmp_path / "a.jsonl", missing="drop")
