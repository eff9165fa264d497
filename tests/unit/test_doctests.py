"""The example of every public name, run as a reader would run it."""

import doctest
import inspect

import pytest

import workbench

NAMES = [name for name in workbench.__all__ if name != "__version__"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documented = getattr(workbench, name)
    (examples,) = doctest.DocTestFinder(recurse=False).find(documented, name, module=inspect.getmodule(documented))
    assert examples.examples, f"workbench.{name} has no example"
    said: list[str] = []
    done = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=said.append)
    assert not done.failed, "".join(said)
