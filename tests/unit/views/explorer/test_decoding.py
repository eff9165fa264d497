"""A reply behind its prompt, in one pass, is the reply that was decoded token by token, in every kind of family."""

import pytest
import torch
from PIL import Image

from workbench.models.families import FAMILIES
from workbench.models.masks import Mask
from workbench.models.tiny import build_tiny
from workbench.prompts.prompt import Prompt
from workbench.views.explorer.decoding import Decoded


# Kinds of tokens (Gemma 3), a prompt that is read both ways (PaliGemma), three-dimensional positions (Qwen), layers
# that look at the picture (Mllama), windows (Gemma 2).
@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma", "qwen3_vl", "mllama", "gemma2"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' PaliGemma
def test_what_is_likeliest_at_each_place_is_what_was_decoded_there(name):
    model = build_tiny(name, dtype=torch.float64)
    picture = Image.new("RGB", (64, 40), "red") if FAMILIES[name].has_images else None
    prompt = Prompt(id="p", text="what is this", image=picture)
    about = {"heads": [(model.masked_layers[0], 1)], "projection": "query", "mask": Mask()}
    for masked in (False, True):
        out = model.generated(prompt, max_new_tokens=6, **(about if masked else {}))
        ids = out.sequences[0, out.n_prompt_tokens :]
        reply = Decoded.of(model, prompt, ids, masked=masked, **about)
        assert model.unembed(reply.states(model, masked=masked)).argmax(-1).tolist() == ids.tolist()
        other = model.unembed(reply.states(model, masked=not masked))
        assert not torch.equal(other, model.unembed(reply.states(model, masked=masked))), "the mask changes nothing"
        assert reply.look(model).n_pos == reply.first + 1 + len(ids)
