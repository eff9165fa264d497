"""Copies of the notebooks that a test can run in seconds: the same cells on fewer prompts."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = tuple(sorted(path.name for path in FOLDER.glob("*.ipynb")))
# As they stand in the files, whose quotes are escaped. What is not found is an error: the copy would be the long one.
SMALLER = {'split=\\"selection\\", seed=0, n=80': 'split=\\"selection\\", seed=0, n=32'}
OTHERS: dict[str, dict[str, str]] = {
    "03_your_own_model_and_data.ipynb": {},  # runs in seconds as it is
    "07_adversary_and_faithfulness.ipynb": {"seed=0, n=60": "seed=0, n=36", "eps=(8, 32), steps=4": "eps=8, steps=2"},
    "06_how_the_signal_flows.ipynb": {"n=96": "n=48"},
    "04_arena_and_studies.ipynb": {"seed=0, n=180": "seed=0, n=60"},
    "05_swap_heads.ipynb": {},  # on 48 and 40 prompts as it stands
}


def small_copy(name: str, folder: Path) -> Path:
    """Write notebook `name` into `folder` with its prompts cut down; returns the copy."""
    text = (FOLDER / name).read_text()
    for wanted, instead in OTHERS.get(name, SMALLER).items():
        if wanted not in text:
            raise AssertionError(f"{name} no longer holds {wanted!r}, so it would run at full length here.")
        text = text.replace(wanted, instead)
    copy = folder / name
    copy.write_text(text)
    return copy
