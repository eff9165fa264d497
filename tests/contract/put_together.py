"""Put together the models that test_apart.py sent to a folder, sweep each once, and store what comes out beside it."""

import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

import workbench as wb
from workbench.models.conformance.at_load import probe_prompt
from workbench.models.transfer import together

folder = Path(sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
warnings.simplefilter("ignore")
for file in sorted(folder.glob("*.model")):
    bare = pickle.loads(file.read_bytes())  # noqa: S301  # our own, written a moment ago: it is how Ray sends objects
    weights = dict(np.load(folder / f"{file.stem}.weights.npz"))
    model = together(bare, weights, torch.device("cpu"), {})
    run = wb.sweep(model, [probe_prompt(model)], progress=False)
    found = {str(name): run[name].values for name in run.data_vars}
    np.savez(folder / f"{file.stem}.run.npz", weight_hash=model.weight_hash, **found)
