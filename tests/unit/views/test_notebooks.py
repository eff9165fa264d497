"""The notebooks run from the first cell to the last, and are kept without outputs."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.notebook_copies import FOLDER, NAMES, small_copy

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path, monkeypatch):
    # The kernel finds the package as this process does, and writes nothing outside the test's folder.
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(small_copy(name, tmp_path), as_version=4)
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert shown, "the notebook showed nothing"
    assert not [out for out in shown if out.output_type == "error"]
    complaints = [out.text for out in shown if out.get("name") == "stderr" and "Warning" in out.text]
    assert not complaints, complaints


@pytest.mark.parametrize("name", NAMES)
def test_it_is_thin_stripped_and_names_the_kernel_everyone_has(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.source.count("\n") < 5, "a notebook cell tells; what computes belongs in the package"
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
