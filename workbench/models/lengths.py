"""How long prompts will be, from their texts and the sizes of their pictures: what a sweep is planned from."""

from dataclasses import replace

from PIL import Image

from workbench.models.encode import check_length, check_words, raw_text, templated_text
from workbench.models.hooked import HookedLVLM
from workbench.prompts.prompt import Prompt


class Lengths:
    """Tokens of prompts, without decoding a picture.

    What a picture adds to the tokens of the text depends on its size alone; it is asked of the processor once a size,
    with a blank picture.
    """

    def __init__(self, model: HookedLVLM) -> None:
        self.model = model
        self._added: dict[tuple[int, int] | None, int] = {}

    def __call__(self, prompt: Prompt) -> int:
        """As many as `model.encode(prompt).n_tokens`.

        Raises:
            PromptError: As `workbench.models.encode.encode`, for all that text and size show.
            ModelError: Likewise.
        """
        size = None if prompt.image is None else prompt.image.size
        if size not in self._added:
            blank = prompt if size is None else replace(prompt, image=Image.new("RGB", size))
            self._added[size] = self.model.encode(blank).n_tokens - self._words(prompt)
        check_words(self.model, prompt)
        count = self._words(prompt) + self._added[size]
        check_length(self.model, prompt, count)
        return count

    def _words(self, prompt: Prompt) -> int:
        text = raw_text(self.model, prompt) if self.model.template == "raw" else templated_text(self.model, prompt)
        return len(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])
