"""Rankings of heads in the node files of MIB's circuit track, so that its own evaluation can read them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.axes import Head
from workbench.models.hooked import HookedLVLM


def write_mib_nodes(
    values: Mapping[Head, float], model: HookedLVLM, path: str | Path, *, kept: Sequence[Head] = ()
) -> Path:
    """Write a value a head as MIB's graph file: nodes `a{layer}.h{head}`, `m{layer}`, `input` and `logits`, no edges.

    Heads without a value, MLPs and the input have no score, which MIB reads as never to be left out.

    Args:
        values: By (layer, head); larger comes first. MIB's evaluation can rank by them signed or by their size; which
            was meant should be said beside the file.
        model: Theirs; its sizes are written.
        path: A `.json` file.
        kept: Heads that are in the circuit; by default none is marked, and sizes are cut by score.

    Returns:
        The path.

    Source:
        `Graph.from_json` of hannamw/EAP-IG (src/eap/graph.py), which the MIB circuit track evaluates with.
    """
    marked = {*kept}
    nodes: dict[str, dict[str, bool | float]] = {"input": {"in_graph": True}}
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            at = (layer, head)
            scored = {"score": float(values[at])} if at in values else {}
            nodes[f"a{layer}.h{head}"] = {"in_graph": at in marked or at not in values} | scored
        nodes[f"m{layer}"] = {"in_graph": True}
    nodes["logits"] = {"in_graph": True}
    # Where attention and MLP read the same state side by side there is one norm before both.
    beside = not any("post_attention" in name for name, _ in model.layers[0].named_children())
    sizes = {"n_layers": model.n_layers, "n_heads": model.n_heads, "d_model": model.d_model}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cfg": sizes | {"parallel_attn_mlp": beside}, "nodes": nodes, "edges": {}}) + "\n")
    return path
