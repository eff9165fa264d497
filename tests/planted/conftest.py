"""The planted models in double precision, loaded the public way and never changed, and their weights as numpy."""

import numpy as np
import pytest

import workbench as wb
from tests.planted import reference
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt, PromptSet


@pytest.fixture(scope="session")
def planted() -> HookedLVLM:
    return wb.load_model("planted", dtype="float64", device="cpu")


@pytest.fixture(scope="session")
def planted_pair() -> HookedLVLM:
    return wb.load_model("planted-pair", dtype="float64", device="cpu")


@pytest.fixture(scope="session")
def few() -> PromptSet:
    """16 prompts: two twins of every family."""
    return wb.load_prompts("planted", split="selection", n=16)


class Reference:
    """The numpy forward of one loaded model."""

    def __init__(self, model: HookedLVLM) -> None:
        self.model = model
        self.weights = {name: value.detach().numpy() for name, value in model.hf.named_parameters()}

    def __call__(
        self, prompt: Prompt, heads: tuple[tuple[int, int], ...] = (), projection: str = "query"
    ) -> reference.Forward:
        ids = self.model.encode(prompt).input_ids[0].numpy()
        placeholder = self.model.hf.config.image_token_id
        image = prompt.image
        return reference.forward(
            self.weights, np.asarray(ids), image, image_token=placeholder, heads=heads, projection=projection
        )


@pytest.fixture(scope="session")
def by_hand(planted: HookedLVLM) -> Reference:
    return Reference(planted)


@pytest.fixture(scope="session")
def pair_by_hand(planted_pair: HookedLVLM) -> Reference:
    return Reference(planted_pair)
