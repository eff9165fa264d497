"""What a prompt can say besides its text: a system prompt, earlier turns, how the reply begins."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from workbench.errors import ModelError, PromptError
from workbench.models.tiny import build_tiny
from workbench.prompts.prompt import Prompt

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}\n"
)
FULL = {"system": "is a", "turns": (("user", "what"), ("assistant", "this")), "prefill": ' what\n"is" }} {{ this'}


def model(kind: str, template: str = TEMPLATE):
    torch.manual_seed(0)
    tiny = build_tiny(kind)
    (tiny.processor or tiny.tokenizer).chat_template = template
    return tiny


@pytest.mark.parametrize("kind", ["llava", "llama"])
def test_all_that_is_said_reaches_the_model_in_order(kind, monkeypatch):
    tiny = model(kind)
    image = Image.new("RGB", (32, 32), "red") if kind == "llava" else None
    templated = tiny.processor or tiny.tokenizer
    texts = []
    call = type(templated).__call__

    def listen(self, *args, **kwargs):
        texts.append(kwargs["text"] if "text" in kwargs else args[0])
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(templated), "__call__", listen)
    plain = tiny.encode(Prompt("p", "what is this", image))
    whole = tiny.encode(Prompt("p", "what is this", image, **FULL))
    shown = "<image>" if image else ""
    first, last = (text if isinstance(text, str) else text[0] for text in (texts[0], texts[-1]))
    assert first == f"[user]{shown}what is this[assistant]"
    assert last == f"[system]is a[user]what[assistant]this[user]{shown}what is this[assistant]{FULL['prefill']}"
    assert whole.n_tokens > plain.n_tokens


def test_a_template_that_drops_or_mixes_up_roles_is_refused():
    blind = model("llama", "{% for m in messages %}USER: {{ m.content }}{% endfor %}ASSISTANT:")
    deaf = model("llama", "{{ messages[-1].content }}")
    strict = model("llama", "{{ raise_exception('no system prompts') if messages[0].role == 'system' else 'x' }}")
    prompt = Prompt("p", "what", system="is this")
    for tiny, said in ((blind, "has no words for"), (deaf, "leaves out")):
        with pytest.raises(ModelError, match=said):
            tiny.encode(prompt)
        tiny.encode(replace(prompt, system="", prefill=" is"))
    with pytest.raises(PromptError, match="no system prompts"):  # what a template itself refuses is of the prompt
        strict.encode(prompt)
    with pytest.raises(ModelError, match="leaves out what the assistant said"):
        deaf.encode(Prompt("p", "what", turns=(("assistant", "this"),)))


def test_a_placeholder_is_refused_wherever_it_is_typed():
    tiny = model("llava")
    for where in ({"system": "<image>"}, {"prefill": "a <image>"}, {"turns": (("user", "<image>"),)}):
        with pytest.raises(PromptError, match="image placeholder"):
            tiny.encode(Prompt("p", "what", Image.new("RGB", (32, 32)), **where))


def test_what_is_said_counts_as_content_and_its_absence_changes_nothing():
    plain = Prompt("p", "what is this", label="safe")
    assert plain.content_hash() == "b0d2501d6bfa7911", "as hashed before prompts could say more"
    hashes = {replace(plain, **{name: value}).content_hash() for name, value in FULL.items()}
    keys = {replace(plain, **{name: value}).content_key() for name, value in FULL.items()}
    assert len(hashes - {plain.content_hash()}) == len(keys - {plain.content_key()}) == 3


@pytest.mark.parametrize("turns", ["what", (("system", "x"),), (("user",),), (("user", 3),), (("user", "\ud800"),), 3])
def test_turns_are_pairs_of_role_and_text(turns):
    with pytest.raises(PromptError, match=r"prompt 'p': turns must be pairs of a role, user or assistant"):
        Prompt("p", "what", turns=turns)
