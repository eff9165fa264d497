"""Prompts as a model reads them, made when they are needed: many take no more memory than a few."""

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor

from workbench.models.encode import Encoded
from workbench.models.hooked import HookedLVLM
from workbench.prompts.pictures import Recent
from workbench.prompts.prompt import Prompt

# So many bytes of encoded prompts are kept for whoever asks next.
ENCODED_BUDGET = 64 * 2**20
TOKEN_BYTES = 200  # of Python's own for each token, beside the tensors


class Encodings:
    """What `model.encode` gives for each prompt; those used last are kept, and the others are made again."""

    def __init__(self, model: HookedLVLM, prompts: Sequence[Prompt]) -> None:
        self.model, self.prompts = model, prompts
        self._recent = Recent(ENCODED_BUDGET, _bytes)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Encoded]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Encoded:
        encoded: Encoded = self._recent.get(index, partial(self._encoded, index))
        return encoded

    def _encoded(self, index: int) -> Encoded:
        return self.model.encode(self.prompts[index])


def _bytes(encoded: Encoded) -> int:
    tensors = sum(v.nbytes for v in encoded.model_inputs.values() if isinstance(v, Tensor))
    return tensors + TOKEN_BYTES * encoded.n_tokens
