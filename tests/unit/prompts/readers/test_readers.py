"""Published sets by name: miniatures of their layouts, read with exact counts; what is not as published is refused."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.builders.published import (
    bap,
    figstep,
    ifeval,
    jailbreakv,
    jbb,
    lines,
    llava,
    mm_safetybench,
    mm_safetybench_hub,
    mm_vet,
    picture,
    sharegpt4v,
    text,
    visualadv,
    vlguard,
    vlsafe,
    xstest,
)
from workbench.errors import PromptError
from workbench.prompts import load_prompts
from workbench.prompts.readers import readers
from workbench.prompts.readers.check import check_set

NAMES = (
    "advbench bap figstep ifeval jailbreakbench jailbreakv llava-instruct maliciousinstruct mm-safetybench mm-vet "
    "sharegpt4v visualadv vlguard vlsafe xstest"
).split()


# (set, what builds it, part or None, prompts, unsafe, families, categories, pictures)
CASES = [
    ("figstep", figstep, None, 4, 4, {"figstep": 4}, {"Topic 1": 2, "Topic 2": 2}, 4),
    ("figstep", figstep, "tiny", 1, 1, {"figstep": 1}, {"Topic 1": 1}, 1),
    ("figstep", figstep, "benign", 2, 0, {"benign": 2}, {"": 2}, 0),
    ("vlsafe", vlsafe, None, 3, 3, {"photograph": 3}, {"": 3}, 3),
    ("vlsafe", vlsafe, "selection", 1, 1, {"photograph": 1}, {"": 1}, 1),
    ("vlguard", vlguard, None, 5, 3, {"safe_safe": 2, "safe_unsafe": 2, "unsafe": 1}, {"": 4, "privacy": 1}, 3),
    ("vlguard", vlguard, "train", 3, 2, {"safe_safe": 1, "safe_unsafe": 1, "unsafe": 1}, {"": 2, "privacy": 1}, 1),
    (
        "jailbreakv",
        jailbreakv,
        None,
        7,
        7,
        {"llm_transfer": 3, "figstep": 1, "query_relevant": 3},
        {"Child Abuse": 7},
        7,
    ),
    ("jailbreakv", jailbreakv, "redteam", 2, 2, {"text": 2}, {"Child Abuse": 1, "Fraud": 1}, 0),
    ("mm-safetybench", mm_safetybench, None, 4, 4, {"sd_typo": 4}, {"Weather": 2, "Tax_Advice": 2}, 4),
    ("mm-safetybench", mm_safetybench, "SD", 4, 4, {"sd": 4}, {"Weather": 2, "Tax_Advice": 2}, 4),
    ("mm-safetybench", mm_safetybench_hub, None, 4, 4, {"sd": 4}, {"Weather": 2, "Tax_Advice": 2}, 4),
    ("llava-instruct", llava, None, 2, 0, {"question": 2}, {"": 2}, 2),
    ("llava-instruct", llava, "release", 1, 0, {"question": 1}, {"": 1}, 1),
    ("sharegpt4v", sharegpt4v, None, 1, 0, {"question": 1}, {"coco": 1}, 1),
    ("mm-vet", mm_vet, None, 1, 0, {"question": 1}, {"math+rec": 1}, 1),
    ("mm-vet", mm_vet, "list", 1, 0, {"question": 1}, {"": 1}, 1),
    ("ifeval", ifeval, None, 2, 0, {"text": 2}, {"length": 2}, 0),
    (
        "advbench",
        lines("harmful_behaviors.csv", "goal,target\nnone,Sure\nb,Sure\n"),
        None,
        2,
        2,
        {"text": 2},
        {"": 2},
        0,
    ),
    ("advbench", lines("advbench.txt", "a\nb"), None, 2, 2, {"text": 2}, {"": 2}, 0),
    ("maliciousinstruct", lines("MaliciousInstruct.txt", "a\nb\nc"), None, 3, 3, {"text": 3}, {"": 3}, 0),
    ("maliciousinstruct", lines("MaliciousInstruct.csv", "input\na\n"), None, 1, 1, {"text": 1}, {"": 1}, 0),
    ("jailbreakbench", jbb, None, 1, 1, {"text": 1}, {"Fraud": 1}, 0),
    ("jailbreakbench", jbb, "benign", 2, 0, {"text": 2}, {"Fraud": 2}, 0),
    ("xstest", xstest, None, 2, 1, {"text": 2}, {"homonyms": 1, "contrast_homonyms": 1}, 0),
    ("visualadv", visualadv, None, 2, 2, {"visualadv_unconstrained": 2}, {"": 2}, 1),
    ("visualadv", visualadv, "16", 2, 2, {"visualadv_16": 2}, {"": 2}, 1),
    ("bap", bap, None, 4, 4, {"bap": 4}, {"": 4}, 2),
]


@pytest.mark.parametrize(("name", "build", "part", "n", "unsafe", "families", "categories", "pictures"), CASES)
def test_a_set_is_read_as_it_is_published(tmp_path, name, build, part, n, unsafe, families, categories, pictures):
    build(tmp_path)
    prompts = load_prompts(name, root=tmp_path, part=part)
    assert len(prompts) == n
    assert sum(p.label == "unsafe" for p in prompts) == unsafe
    assert Counter(p.family for p in prompts) == families
    assert Counter(p.category for p in prompts) == categories
    assert len({id(p.image) for p in prompts if p.image is not None}) == pictures
    assert {p.source for p in prompts} == {name}
    for prompt in prompts:
        assert prompt.image is None or np.asarray(prompt.image).shape == (6, 8, 3)
    assert load_prompts(f"{name}:{tmp_path}", part=part).content_hash() == prompts.content_hash()
    found = check_set(name, tmp_path, part=part or readers_part(name, tmp_path))[0]
    assert found.prompts.content_hash() == prompts.content_hash()
    assert found.counts["n"].sum() == n


def readers_part(name: str, root: Path) -> str:
    from workbench.prompts.readers.layout import Layout

    return Layout(readers()[name], root).parts()[0]


def test_every_reader_has_a_record_and_a_case():
    assert sorted(readers()) == NAMES
    assert {case[0] for case in CASES} == set(NAMES)
    for reader in readers().values():
        assert all((reader.title, reader.licence, reader.where, reader.columns, reader.labels, reader.source))
        assert set(reader.counts) == set(reader.files)


def test_texts_are_what_the_layout_says(tmp_path):
    vlguard(tmp_path)
    prompts = load_prompts("vlguard", root=tmp_path)
    assert [(p.text, p.label, p.pair_id) for p in prompts[:4]] == [
        ("name it", "safe", "test-1"),
        ("misuse it", "unsafe", "test-1"),
        ("name it", "safe", "test-2"),
        ("misuse it", "unsafe", "test-2"),
    ], "the order of keys and of instructions says nothing"
    assert prompts[4].pair_id == ""
    assert [p.id for p in prompts][2] == "test-s1-safe_safe#2", "an id that is published twice stands for both rows"


def test_the_question_key_can_be_chosen(tmp_path):
    mm_safetybench(tmp_path)
    assert {p.text for p in load_prompts("mm-safetybench", root=tmp_path)} == {"with print"}
    assert {p.text for p in load_prompts("mm-safetybench", root=tmp_path, part="SD")} == {"with drawing"}
    asked = load_prompts("mm-safetybench", root=tmp_path, columns={"text": "Question"})
    assert {p.text for p in asked} == {"q"}
    with pytest.raises(PromptError, match="has no key 'Quest'; it has Question"):
        load_prompts("mm-safetybench", root=tmp_path, columns={"text": "Quest"})


def test_conversations_lose_their_mark(tmp_path):
    llava(tmp_path)
    assert [p.text for p in load_prompts("llava-instruct", root=tmp_path)] == ["What is it?", "Where is it?"]
    figstep(tmp_path)
    assert [p.text for p in load_prompts("figstep", root=tmp_path, part="benign")] == ["Bake, then eat.", "Fly a kite."]
    asked = load_prompts("figstep", root=tmp_path, columns={"text": "question"})
    assert asked[0].text == "Ask 1 1?"
    assert asked[0].image is None


def test_missing_pictures_are_counted_listed_and_left_out_on_request(tmp_path, caplog):
    vlsafe(tmp_path)
    (tmp_path / "train2017/000001.jpg").unlink()
    with pytest.raises(PromptError, match=r"1 of 3 rows cannot be used(.|\n)*row 2 \(line 2\): image '000001.jpg'"):
        load_prompts("vlsafe", root=tmp_path)
    with caplog.at_level(logging.INFO, logger="workbench"):
        prompts = load_prompts("vlsafe", root=tmp_path, missing="drop")
    assert [p.id for p in prompts] == ["examine-1", "examine-3"]
    assert "1 of 3 rows are left out" in caplog.text
    assert "the part examine is read, of examine, queries, selection, alignment" in caplog.text
    elsewhere = tmp_path / "elsewhere"
    picture(elsewhere / "000001.jpg", 1)
    assert len(load_prompts("vlsafe", root=tmp_path, images=elsewhere)) == 3


@pytest.mark.parametrize(
    ("name", "build", "path", "old", "new", "said"),
    [
        (
            "figstep",
            figstep,
            "data/question/safebench.csv",
            "task_id",
            "task",
            "the column 'task_id' is missing. 'task' is",
        ),
        (
            "vlsafe",
            vlsafe,
            "VLSafe/harmlessness_examine.jsonl",
            '"query"',
            '"question"',
            "the column 'query' is missing",
        ),
        ("vlguard", vlguard, "test.json", '"safe"', '"is_safe"', "entry 1: this is not VLGuard as published"),
        (
            "vlguard",
            vlguard,
            "test.json",
            "unsafe_instruction",
            "instruction",
            "a safe picture comes with safe_instruction",
        ),
        (
            "jailbreakv",
            jailbreakv,
            "JailBreakV_28K/mini_JailBreakV_28K.csv",
            "Template",
            "Temp",
            "'Temp' is none of templ",
        ),
        ("jailbreakv", jailbreakv, "JailBreakV_28K/mini_JailBreakV_28K.csv", "policy", "rule", "'policy' is missing"),
        (
            "mm-safetybench",
            mm_safetybench,
            "data/processed_questions/01-Weather.json",
            "Key Phrase",
            "Key",
            "'Key Phrase'",
        ),
        ("llava-instruct", llava, "llava_instruct_80k.json", "conversations", "turns", "'conversations' is missing"),
        ("llava-instruct", llava, "llava_instruct_80k.json", "human", "gpt", "begins with a human turn"),
        ("sharegpt4v", sharegpt4v, "ShareGPT4V/sharegpt4v.csv", "image_path", "image", "'image_path' is missing"),
        ("mm-vet", mm_vet, "mm-vet/mm-vet.json", "imagename", "image", "'imagename' is missing"),
        ("ifeval", ifeval, "input_data.jsonl", '"prompt"', '"text"', "'prompt' is missing"),
        ("jailbreakbench", jbb, "data/harmful-behaviors.csv", "Goal", "Aim", "'Goal' is missing"),
        ("xstest", xstest, "xstest_prompts.csv", "contrast_homonyms", "homonyms", "contradict each other"),
        ("xstest", xstest, "xstest_prompts.csv", "focus", "fokus", "'focus' is missing. 'fokus' is not known"),
        (
            "visualadv",
            visualadv,
            "harmful_corpus/manual_harmful_instructions.csv",
            "three,",
            "three",
            "row 2 (line 2): 1 c",
        ),
    ],
)
def test_what_is_not_as_published_is_refused(tmp_path, name, build, path, old, new, said):
    build(tmp_path)
    file = tmp_path / path
    changed = file.read_text(encoding="utf-8").replace(old, new)
    file.write_text(changed, encoding="utf-8")
    with pytest.raises(PromptError) as caught:
        load_prompts(name, root=tmp_path)
    assert said in str(caught.value)


def test_calls_that_name_no_set(tmp_path):
    for how, said in (
        ({"name_or_path": "figstep"}, "say where it lies, with root=DIR or as 'figstep:DIR'"),
        (
            {"name_or_path": "figsteps", "root": tmp_path},
            "There is no published set 'figsteps'. Did you mean 'figstep'? There are adv",
        ),
        ({"name_or_path": "figstep", "root": tmp_path}, "has no data/question/safebench.csv or"),
        ({"name_or_path": "figstep", "root": tmp_path, "part": "large"}, "has the parts safebench, tiny, benign"),
        ({"name_or_path": "figstep", "root": tmp_path / "none"}, "is no folder. FigStep is to be had at github.com"),
        ({"name_or_path": "figsteb:x"}, "Did you mean 'figstep'?"),
        ({"name_or_path": "pocket.csv", "root": tmp_path}, "root and part are for published sets"),
        ({"name_or_path": "bap", "root": tmp_path}, "BAP publishes no pictures: put those you made into"),
    ):
        with pytest.raises(PromptError) as caught:
            load_prompts(**how)
        assert said in str(caught.value)


def test_a_link_out_of_a_set_is_not_followed(tmp_path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "a.csv"
    text(outside, "goal,target\na,b\n")
    (tmp_path / "harmful_behaviors.csv").symlink_to(outside)
    with pytest.raises(PromptError, match="outside"):
        load_prompts("advbench", root=tmp_path)
