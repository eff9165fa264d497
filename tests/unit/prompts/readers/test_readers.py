"""Published sets by name: miniatures of their layouts, in words and pictures of our own, with every quirk they have."""

import io
import json
import logging
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from workbench.errors import PromptError
from workbench.prompts import load_prompts
from workbench.prompts.caveats import overlaps
from workbench.prompts.readers import readers
from workbench.prompts.readers.check import check_set

NAMES = (
    "advbench bap figstep ifeval jailbreakbench jailbreakv llava-instruct maliciousinstruct mm-safetybench mm-vet "
    "sharegpt4v visualadv vlguard vlsafe xstest"
).split()


def picture(path: Path, seed: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8))
    image.save(path)
    return path.read_bytes()


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


def figstep(d: Path) -> None:
    header = "dataset,category_id,task_id,category_name,question,instruction"
    rows = [f"ForbidQI,{c},{t},Topic {c},Ask {c} {t}?,Steps {c} {t}. 1." for c in (1, 2) for t in (1, 2)]
    text(d / "data/question/safebench.csv", "\n".join([header, *rows]) + "\n")
    text(d / "data/question/SafeBench-Tiny.csv", "\r\n".join([header, rows[0]]) + "\r\n")
    text(d / "data/question/benign_sentences_without_harmful_phase.csv", 'sentence\nBake, then eat.\n"Fly a kite."\n')
    for k, name in enumerate(("1_1", "1_2", "2_1", "2_2")):
        picture(d / f"data/images/SafeBench/query_ForbidQI_{name}_6.png", k)
    picture(d / "data/images/SafeBench-Tiny/query_ForbidQI_1_1_6.png", 0)


def vlsafe(d: Path) -> None:
    rows = [{"image_id": f"00000{k}.jpg", "caption": f"a thing {k}", "query": f"question {k}"} for k in range(3)]
    text(d / "VLSafe/harmlessness_examine.jsonl", "\n".join(map(json.dumps, rows)))
    text(d / "VLSafe/vlsafe.csv", "image_path,jailbreak_query\r\n000001.jpg,question 1\r\n")
    for k in range(3):
        picture(d / f"train2017/00000{k}.jpg", k)


def vlguard(d: Path) -> None:
    both = [{"safe_instruction": "name it", "response": "a"}, {"unsafe_instruction": "misuse it", "response": "b"}]
    bad = {"harmful_category": "privacy", "harmful_subcategory": "data"}
    unsafe = [{"instruction": "do as it says", "response": "c"}]
    rows = [
        {"id": "s1", "image": "ads/1.png", "safe": True, "instr-resp": both},
        {"instr-resp": both[::-1], "safe": "True", "image": "ads/2.png", "id": "s1"},
        {"id": "u1", "image": "memes/3.png", "safe": False, **bad, "instr-resp": unsafe},
    ]
    text(d / "test.json", json.dumps(rows))
    text(d / "train.json", json.dumps([rows[0], {**rows[2], "safe": "False", "image": "ads/1.png"}]))
    for k, name in enumerate(("ads/1", "ads/2", "memes/3")):
        picture(d / f"test/{name}.png", k)
    content = picture(d / "x.png", 0)
    with zipfile.ZipFile(d / "train.zip", "w") as archive:
        archive.writestr("train/ads/1.png", content)
    (d / "x.png").unlink()


def jailbreakv_picture(k: int) -> str:
    return f"{'figstep' if k > 2 else 'noise'}/{k}.png"


def jailbreakv(d: Path) -> None:
    kinds = ["Template", "Persuade", "Logic", "figstep", "SD", "SD_typo", "typo"]
    header = "id,jailbreak_query,redteam_query,format,policy,image_path,from,selected_mini,transfer_from_llm"
    rows = [
        f'{k},"Jail {k},\nsecond line",Ask {k}?,{kind},Child Abuse Content,{jailbreakv_picture(k)},G,True,False'
        for k, kind in enumerate(kinds)
    ]
    text(d / "JailBreakV_28K/mini_JailBreakV_28K.csv", "\ufeff" + "\n".join([header, *rows]))
    text(d / "JailBreakV_28K/RedTeam_2K.csv", "id,question,policy,from\n1,ask 0,Child Abuse,G\n2,ask 9,Fraud,G\n")
    for k in range(7):
        picture(d / "JailBreakV_28K" / jailbreakv_picture(k), max(k, 2))


def mm_safetybench(d: Path) -> None:
    for number, scenario in ((1, "01-Weather"), (2, "02-Tax_Advice")):
        entry = {
            "Question": "q",
            "Changed Question": "c",
            "Key Phrase": "k",
            "Phrase Type": "free, text",
            "Rephrased Question": "with print",
            "Rephrased Question(SD)": "with drawing",
        }
        gaps = {"0": entry, "2": dict(reversed(entry.items())) | {"GPT-Pred": "x"}}
        text(d / f"data/processed_questions/{scenario}.json", json.dumps(gaps))
        for part in ("SD", "TYPO", "SD_TYPO"):
            for k in (0, 2):
                picture(d / f"data/imgs/{scenario}/{part}/{k}.jpg", 10 * number + k)


def mm_safetybench_hub(d: Path) -> None:
    for scenario in ("Tax_Advice", "Weather"):
        content = picture(d / "x.jpg", len(scenario))
        (d / "x.jpg").unlink()
        rows = [{"id": str(k), "question": f"{scenario} {k}", "image": content} for k in range(2)]
        (d / "data" / scenario).mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(d / "data" / scenario / "SD.parquet", row_group_size=1)


def llava(d: Path) -> None:
    turn = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."}]
    later = [{"from": "human", "value": "Where is it?\n<image>"}]
    rows = [
        {"id": "1", "image": "000001.jpg", "conversations": turn},
        {"conversations": later, "image": "000002.jpg", "id": "1"},
    ]
    text(d / "llava_instruct_80k.json", json.dumps(rows))
    quoted = '"id","jailbreak_query","image_path"\r\n"7","What, now?","000001.jpg"\r\n'
    text(d / "LLaVA-Instruct-80K/max_safe.csv", quoted)
    for k in (1, 2):
        picture(d / f"coco/train2017/00000{k}.jpg", k)


def sharegpt4v(d: Path) -> None:
    text(d / "ShareGPT4V/sharegpt4v.csv", "id,image_path,jailbreak_query\n1,coco/train2017/000001.jpg,What is it?\n")
    picture(d / "coco/train2017/000001.jpg", 1)


def mm_vet(d: Path) -> None:
    entry = {
        "imagename": "v1_0.png",
        "question": "How many?",
        "answer": "3",
        "capability": ["rec", "math"],
        "imagesource": "x",
    }
    text(d / "mm-vet/mm-vet.json", json.dumps({"v1_0": entry}))
    text(
        d / "mm-vet_metadata.json",
        json.dumps([{"id": "v1_0", "txt": "How many?", "img": "data/MM-Vet/v1_0.png", "toxicity": 0}]),
    )
    picture(d / "mm-vet/images/v1_0.png", 0)


def ifeval(d: Path) -> None:
    rows = [
        {"key": k, "prompt": f"write {k} words", "instruction_id_list": ["length:words"], "kwargs": [{}]}
        for k in (5, 9)
    ]
    text(d / "input_data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def xstest(d: Path) -> None:
    text(
        d / "xstest_prompts.csv",
        "id,prompt,type,label,focus,note\n1,kill a process?,homonyms,safe,null,\n2,b,contrast_homonyms,unsafe,x,\n",
    )


def visualadv(d: Path) -> None:
    text(d / "harmful_corpus/manual_harmful_instructions.csv", '"one, two",\nthree,\n')
    for k, part in enumerate(("constrained_16", "unconstrained")):
        picture(d / f"adversarial_images/prompt_{part}.bmp", k)


def bap(d: Path) -> None:
    text(d / "requests.txt", "one\ntwo")
    picture(d / "images/a.png", 0)
    picture(d / "images/b.png", 1)


def lines(name: str, content: str):
    return lambda d: text(d / name, content)


def jbb(d: Path) -> None:
    text(d / "data/harmful-behaviors.csv", "Index,Goal,Target,Behavior,Category,Source\n0,g,t,b,Fraud,o\n")
    text(d / "data/benign-behaviors.csv", "Goal,Target,Behavior,Category\ng,t,b,Fraud\nh,t,b,Fraud\n")


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
            "No published set is called 'figsteps'. Those that are read: adv",
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


def test_a_check_says_what_repeats_and_what_differs_and_never_a_text(tmp_path):
    vlguard(tmp_path)
    found = check_set("vlguard", tmp_path)
    assert [f.part for f in found] == ["test", "train"]
    told = " ".join(s for f in found for s in f.sentences)
    assert "5 prompts, published are 1558" in told
    assert "3 unsafe, published are 1000" in told
    assert "3 pictures, published are 1000" in told
    assert "2 texts stand in 4 rows" in told
    assert "row 1, row 2" in told
    assert "vlguard test and vlguard train share 1 pictures and 3 texts" in overlaps(
        {f.prompts.name: f.prompts for f in found}
    )
    assert not any(words in told for words in ("name it", "misuse", "do as"))
    (tmp_path / "test/ads/1.png").unlink()
    (tmp_path / "test/memes/3.png").write_text("broken")
    first, _ = check_set("vlguard", tmp_path)
    assert first.missing == ("row 1", "row 1")
    assert any("cannot be read" in s for s in first.sentences)


def test_many_rows_that_ask_one_thing_are_said(tmp_path):
    figstep(tmp_path)
    sentences = check_set("figstep", tmp_path, part="safebench")[0].sentences
    assert "the 4 unsafe rows ask 1 different texts: a rate on them tests few questions" in sentences


def test_a_link_out_of_a_set_is_not_followed(tmp_path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "a.csv"
    text(outside, "goal,target\na,b\n")
    (tmp_path / "harmful_behaviors.csv").symlink_to(outside)
    with pytest.raises(PromptError, match="outside"):
        load_prompts("advbench", root=tmp_path)


def test_the_command_lists_and_checks(tmp_path, capsys, monkeypatch):
    from rich.console import Console

    from workbench.cli.data import check_command, show_readers

    figstep(tmp_path)
    console = Console(file=io.StringIO(), width=200)
    show_readers(console)
    assert all(name in console.file.getvalue() for name in NAMES)
    hostile = tmp_path / "data/question/safebench.csv"
    hostile.write_text(hostile.read_text().replace("Topic 1", "[/bold]Topic"))
    check_command(console, "figstep", str(tmp_path), part="safebench", images=())
    printed = console.file.getvalue()
    assert "[/bold]Topic" in printed
    assert "figstep safebench: 4 prompts" in printed
    assert "published are 500" in printed
    assert "Ask 1 1" not in printed
