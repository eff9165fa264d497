"""The matched twin of a prompt: what else shares its `pair_id`, asked with the other label."""

from collections import defaultdict
from collections.abc import Iterable

from workbench.errors import PromptError
from workbench.prompts.prompt import Prompt


class Twins:
    """Prompts by their pair; `of` finds the twin of one.

    Examples:
        >>> import workbench as wb
        >>> prompts = wb.load_prompts("planted", n=4)
        >>> Twins(prompts).of(prompts[0]).label
        'safe'
    """

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._pairs: dict[str, list[Prompt]] = defaultdict(list)
        for prompt in prompts:
            if prompt.pair_id:
                self._pairs[prompt.pair_id].append(prompt)

    def of(self, prompt: Prompt) -> Prompt:
        """The one prompt of the same pair and variant that has the other label.

        Raises:
            PromptError: The prompt is in no pair, its twin is not here, or several could be it.
        """
        if not prompt.pair_id:
            raise PromptError(
                f"Prompt {prompt.id!r} has no twin: its pair_id is empty. Give an unsafe prompt and its safe twin the "
                "same pair_id, or keep to prompts that are paired: prompts.where(lambda p: p.pair_id)."
            )
        others = self.others(prompt)
        if len(others) != 1:
            label = "safe" if prompt.label == "unsafe" else "unsafe"
            found = f"{len(others)} could be it ({', '.join(p.id for p in others[:3])})" if others else "none is here"
            raise PromptError(
                f"Prompt {prompt.id!r} ({prompt.label}) needs its one {label} twin of pair {prompt.pair_id!r}, and "
                f"{found}. Sweep both of a pair together, or give them as the mask's source."
            )
        return others[0]

    def others(self, prompt: Prompt) -> list[Prompt]:
        """All that could be its twin: of its pair, with the other label, and where they are several, of its variant."""
        others = [p for p in self._pairs.get(prompt.pair_id, ()) if p.label != prompt.label]
        return others if len(others) < 2 else [p for p in others if p.variant == prompt.variant]
