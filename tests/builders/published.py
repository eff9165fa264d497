"""Miniatures of published sets' layouts, in words and pictures of our own, with every quirk the real ones have."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


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
