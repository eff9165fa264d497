"""Judges of ETA from local folders: a CLIP for pictures, a reward model for replies. Nothing is fetched."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from workbench.errors import ModelError
from workbench.plain import plain
from workbench.prompts.prompt import Prompt

LOCAL = {"local_files_only": True, "trust_remote_code": False}


class ClipFolder:
    """A CLIP-like model from a folder: the cosine of a picture's and a text's embedding.

    Args:
        path: A folder with safetensors weights, a processor and a tokenizer, as transformers saves them.
        device: cpu, cuda, ….

    Raises:
        ModelError: If it cannot be read, or has no embeddings of pictures and texts.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoProcessor

        self.model, self.processor = _loaded(path, AutoModel, AutoProcessor)
        self.model = self.model.to(device).eval()
        if not hasattr(self.model, "get_image_features"):
            raise ModelError(f"{path} holds a {type(self.model).__name__}, which embeds no pictures beside texts.")

    @torch.no_grad()
    def similarity(self, image: Image.Image, text: str) -> float:
        """Cosine of the two embeddings, -1 to 1."""
        given = self.processor(text=[text], images=[image], return_tensors="pt", truncation=True)
        output = self.model(**given.to(self.model.device))
        return float(torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)[0])


class RewardFolder:
    """A reward model from a folder: a sequence classifier whose first logit is the reward of a conversation.

    Args:
        path: A folder with safetensors weights and a tokenizer, which has a chat template, as transformers saves them.
        system: A system prompt before the conversation; ETA judges under one that asks for safety.
        device: cpu, cuda, ….

    Raises:
        ModelError: If it cannot be read. A model with code of its own (ArmoRM) is not run.
    """

    def __init__(self, path: str | Path, *, system: str = "", device: str = "cpu") -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model, self.tokenizer = _loaded(path, AutoModelForSequenceClassification, AutoTokenizer)
        self.model, self.system = self.model.to(device).eval(), system

    @torch.no_grad()
    def reward(self, prompt: Prompt, reply: str) -> float:
        """The first logit."""
        said = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": reply}]
        said = [{"role": "system", "content": self.system}, *said] if self.system else said
        ids = self.tokenizer.apply_chat_template(said, return_tensors="pt", return_dict=True)
        return float(self.model(**ids.to(self.model.device)).logits[0, 0])


def _loaded(path: str | Path, model: Any, reader: Any) -> tuple[Any, Any]:
    if not Path(path).is_dir():
        raise ModelError(f"There is no folder {plain(path)}. A judge of ETA is read from one; nothing is fetched.")
    try:
        return model.from_pretrained(path, use_safetensors=True, **LOCAL), reader.from_pretrained(path, **LOCAL)
    except (OSError, ValueError, KeyError) as error:
        what = f"{type(error).__name__}: {plain(error)}"
        raise ModelError(f"{plain(path)} could not be read as a judge ({what}).") from error
