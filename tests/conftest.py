"""What every test stands on: no network, one thread a process, and a browser where one is asked for."""

import os
import sys

# Before anything imports torch or transformers. The tests are many small computations: more threads only get in each
# other's way. Nothing may ask a model hub; a test that tries to fails at once instead of waiting for an answer.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["MPLBACKEND"] = "agg"

import numpy as np
import pytest

from tests import find_browser


@pytest.fixture(scope="session")
def browser_path() -> str:
    """A Chromium for the tests marked `browser`; fails, not skips, when there is none."""
    path = find_browser.find()
    if path is None:
        pytest.fail(find_browser.ADVICE, pytrace=False)
    return path


@pytest.fixture(autouse=True)
def _no_leftover_seed() -> None:
    """The same draw of torch's and numpy's global generators for each test, whatever ran before it.

    Torch is not imported for it: a test that comes to import it first finds a generator that nothing has drawn from,
    and seeds it itself if its numbers depend on it.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  libraries that still draw from the global one
