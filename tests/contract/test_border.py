"""What comes in is whole, or refused: checkpoints, templates, long prompts, thin pictures, bridges that do not fit."""

import json
import time

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.utils import logging as hf_logging

import workbench as wb
from workbench.errors import ModelError, PromptError, SelfCheckError
from workbench.models.conformance.at_load import check_at_load
from workbench.models.families import family_of
from workbench.models.families.tiny_parts import randomise, text_sizes
from workbench.models.hooked import HookedLVLM
from workbench.models.templates import BoundedTemplate, TemplateTooLong
from workbench.models.tiny import build_tiny

hf_logging.disable_progress_bar()
WEIGHTS = "model.safetensors"


@pytest.fixture
def saved(tmp_path):
    """`saved(name, change)` is a directory with a tiny model whose weights went through `change`."""

    def save(name="llava", change=None):
        model = build_tiny(name)
        model.hf.save_pretrained(tmp_path)
        (model.processor or model.tokenizer).save_pretrained(tmp_path)
        if change:
            save_file(change(load_file(tmp_path / WEIGHTS)), tmp_path / WEIGHTS, metadata={"format": "pt"})
        return tmp_path

    return save


NAME = "model.layers.2.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != NAME}, rf"lacks 1 weights \({NAME}\)"),
        (lambda w: w | {"model.extra.weight": torch.ones(2)}, r"has besides 1 weights \(model\.extra\.weight\)"),
        (lambda w: w | {NAME: torch.ones(3, 3)}, rf"has in another shape 1 weights \({NAME}\)"),
        (lambda w: {k: v for k, v in w.items() if k != "lm_head.weight"}, r"lacks 1 weights \(lm_head\.weight\)"),
        (lambda w: w | {NAME: w[NAME] * torch.nan}, r"weights are not finite numbers in torch\.float32"),
    ],
    ids=["missing", "unexpected", "mismatched", "untied head", "nan"],
)
def test_a_checkpoint_that_is_not_whole_is_refused(saved, change, message):
    with pytest.raises(ModelError, match=message):
        wb.load_model(saved("llama", change), device="cpu")


def test_buffers_that_older_checkpoints_keep_are_no_reason(saved):
    folder = saved("llama", lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)})
    assert wb.load_model(folder, device="cpu").n_layers == 4


def test_what_does_not_fit_the_dtype_is_refused(saved):
    folder = saved("llama", lambda w: w | {NAME: w[NAME] * 1e7})
    with pytest.raises(ModelError, match=r"not finite numbers in torch\.float16 \(in model\.layers\.2"):
        wb.load_model(folder, device="cpu", dtype="float16")


def test_an_adapter_beside_the_model_is_refused(saved):
    folder = saved("llama")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config\.json\) beside its model"):
        wb.load_model(folder, device="cpu")


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd", "C:\\x.safetensors", "weights.bin"])
def test_an_index_that_names_other_files_is_refused(saved, file):
    folder = saved("llama")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": file}}))
    with pytest.raises(ModelError, match="no safetensors file in its own folder"):
        wb.load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (WEIGHTS, b"not a safetensors file"),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "llama", "vocab_size": "x"}'),
    ],
)
def test_damaged_files_are_told_in_words(saved, file, content):
    folder = saved("llama")
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError, match="could not be loaded"):
        wb.load_model(folder, device="cpu")


def test_an_unknown_hub_id_offline_is_one_attempt(monkeypatch):
    import huggingface_hub

    tried = []

    class Session:
        def head(self, url, **options):
            tried.append(url)
            raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    with pytest.raises(ModelError, match="could not be loaded"):
        wb.load_model("nobody/nothing-here")
    assert len(tried) == 1


def test_a_model_that_is_loaded_already():
    made = build_tiny("llava")
    with pytest.raises(ModelError, match="object that is loaded already needs its processor"):
        wb.load_model(made.hf)
    model = wb.load_model(made.hf, processor=made.processor)
    assert (model.family.name, model.weight_hash) == ("llava", made.weight_hash)
    made = build_tiny("llama")
    assert wb.load_model(made.hf, processor=made.tokenizer).tokenizer is made.tokenizer
    with pytest.raises(ModelError, match="got an object of type int"):
        wb.load_model(3)


def test_no_numbers_on_the_meta_device(saved):
    with pytest.raises(ModelError, match="device 'meta' holds no numbers"):
        wb.load_model("planted", device="meta")
    made = build_tiny("llama")
    made.hf.to("meta")
    with pytest.raises(ModelError, match="offloaded"):
        wb.load_model(made.hf, processor=made.tokenizer)


def test_raw_text_is_what_the_tokenizer_makes_of_it(tmp_path):
    model = wb.load_model("pocket", device="cpu", template="raw")
    assert model.encode(wb.Prompt(id="p", text="how do i make a cake ?")).tokens[:2] == ["<s>", "how"]
    tokens = model.encode(wb.Prompt(id="p", text="a cake", image=Image.new("RGB", (48, 48), "red"))).tokens
    assert tokens[1:37] == ["<image>"] * 36
    assert tokens[37:] == ["a", "cake"]
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'][-1]['text'] }} ?")
    for template in (tmp_path / "own.jinja", "{{ messages[0]['content'][-1]['text'] }} ?"):
        model = wb.load_model("pocket", device="cpu", template=template, check=False)
        assert model.encode(wb.Prompt(id="p", text="a cake")).tokens[-2:] == ["cake", "?"]
    with pytest.raises(ModelError, match="template='rw' cannot be read"):
        wb.load_model("pocket", template="rw")


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "phi3_v", "internvl", "mllama", "llama"])
def test_every_kind_of_family_takes_raw_text(name):
    model = build_tiny(name)
    model.template = "raw"
    check_at_load(model)
    assert "ASSISTANT" not in model.encode(wb.Prompt(id="p", text="what is this")).tokens


HOSTILE = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{{ 'x'.center(10000000000) }}",
    "{{ 'x'|center(10000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a' * 1000) %}{% for i in range(9) %}{% set n.x = n.x|replace('a', n.x) %}{% endfor %}",
    "{% for i in range(99999) %}" + "y" * 5000 + "{% endfor %}",
    "{{ (range(99999)|list * 10000)|length }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_template_without_end_is_stopped(source):
    began = time.monotonic()
    with pytest.raises(TemplateTooLong):
        BoundedTemplate(source).render(messages=[])
    assert time.monotonic() - began < 60


def test_and_the_prompt_is_named():
    model = build_tiny("llama")
    for template in (HOSTILE[1], "{{ raise_exception('no') }}", "{{ messages[0].nothing.here }}", "{% if %}"):
        model.tokenizer.chat_template = template
        with pytest.raises(PromptError, match=r"Prompt 'asked' on 'tiny llama'"):
            model.encode(wb.Prompt(id="asked", text="what"))


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 40),
        ({"rope_type": "linear", "factor": 2.0}, 80),
        ({"rope_type": "dynamic", "factor": 2.0}, 80),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}, 160),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 4}, 40),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_a_prompt_longer_than_the_context_is_refused(rope, limit):
    model = build_tiny("llama")
    model.decoder.config.max_position_embeddings, model.decoder.config.rope_parameters = 40, rope
    length = model.encode(wb.Prompt(id="short", text="what")).n_tokens - 1
    assert model.encode(wb.Prompt(id="fits", text=" ".join(["what"] * (limit - length)))).n_tokens == limit
    with pytest.raises(PromptError, match=rf"'long' .* {limit + 1} tokens long.* context is 1 to {limit} tokens"):
        model.encode(wb.Prompt(id="long", text=" ".join(["what"] * (limit - length + 1))))


@pytest.mark.parametrize("size", [(40, 1), (1, 40), (3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "mistral3", "phi3_v"])
def test_thin_pictures_keep_their_colours_or_are_refused_by_name(name, size, tiny):
    model = tiny(name)

    def seen(size):
        encoded = model.encode(wb.Prompt(id="thin", text="what", image=Image.new("RGB", size, (255, 0, 0))))
        pixels = next(v for v in encoded.model_inputs.values() if torch.is_tensor(v) and v.is_floating_point())
        return set(np.unique(pixels.numpy().round(3)))

    whole = set().union(*map(seen, ((64, 64), (64, 20), (20, 64)))) | {0.0}
    try:
        assert seen(size) <= whole
    except PromptError as error:
        assert "'thin'" in str(error)  # noqa: PT017


def inside_llava(kind):
    """A LLaVA whose text model is of another kind."""
    made = build_tiny("llava")
    text = getattr(transformers, kind)(**text_sizes(made.tokenizer))
    config = transformers.LlavaConfig(
        vision_config=made.hf.config.vision_config, text_config=text, image_token_id=made.hf.config.image_token_id,
        image_seq_length=16,
    )  # fmt: skip
    hf = randomise(transformers.LlavaForConditionalGeneration(config))
    return HookedLVLM(hf, family_of("llava"), name=kind, tokenizer=made.tokenizer, processor=made.processor)


@pytest.mark.parametrize("kind", ["SmolLM3Config", "Phi3Config", "Olmo2Config"])
def test_a_bridge_that_is_not_right_is_refused_and_exact_goes_on(kind):
    model, prompt = inside_llava(kind), wb.Prompt(id="p", text="what is this a cat")
    for ask in (
        model.run_with_hooks,
        model.run_with_cache,
        lambda p: wb.sweep(model, [p], engine="naive", progress=False),
    ):
        with pytest.raises(ModelError, match="bridge for LlavaForConditionalGeneration is not right for"):
            ask(prompt)
    assert float(wb.sweep(model, [prompt], heads=[(1, 1)], progress=False).deflection.max()) > 0


def test_greedy_is_greedy_whatever_the_checkpoint_says():
    model, prompt = build_tiny("llava"), wb.Prompt(id="p", text="what is this a cat")
    plain = model.generate(prompt, max_new_tokens=8)
    first = int(model.logits(prompt).argmax())
    settings = model.hf.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.suppress_tokens = 1.7, 1, [first]
    settings.temperature = 0.1  # transformers warns of it when nothing is sampled
    out = model.generated(prompt, max_new_tokens=1)
    assert int(out.sequences[0, out.n_prompt_tokens]) == first
    assert model.generate(prompt, max_new_tokens=8) == plain
    assert model.hf.generation_config is settings


def test_the_self_check_speaks_the_models_words():
    model = build_tiny("llama")
    words = {f"zz{'abcdefghijklmnopqrstuvwxyz'[i % 26]}{'abc'[i // 26]}": i for i in range(40)}
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"<unk>": 40, **words}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    model.tokenizer, model.template = tokenizer, "raw"
    model.hf.resize_token_embeddings(41)
    randomise(model.hf)
    check_at_load(model)
    for attention in model.attentions.values():
        attention.o_proj.weight.data.zero_()
    with pytest.raises(SelfCheckError, match="3 different tokens known to the tokenizer, so they are not the cause"):
        check_at_load(model)
