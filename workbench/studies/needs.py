"""What studies cannot do without, and why it is not there."""

from workbench.studies.material import Material
from workbench.studies.record import Need

FEWEST = 2


def _few(material: Material, field: str) -> str:
    names = sorted({str(getattr(p, field)) for p in material.prompts if p.label == "unsafe"} - {""})
    if len(names) >= FEWEST:
        return ""
    return f"the unsafe prompts name {', '.join(names) or 'none'} in {field!r}"


OTHER_MODEL = Need("another model (others=, --other MODEL)", lambda m: "" if m.models else "none was given")
SAME_SHAPE = Need(
    "another model with as many layers and heads (others=, --other MODEL)",
    lambda m: (
        ""
        if any((o.n_layers, o.n_heads) == (m.model.n_layers, m.model.n_heads) for o in m.models)
        else "none was given"
    ),
)
FAMILIES = Need("unsafe prompts of two families or more", lambda m: _few(m, "family"))
KINDS = Need(
    "another prompt set (others=, --other-prompts SET), or unsafe prompts of two sources or families",
    lambda m: "" if m.sets or not _few(m, "source") else _few(m, "family"),
)
CATEGORIES = Need("unsafe prompts of two categories (policies) or more", lambda m: _few(m, "category"))
PICTURES = Need(
    "prompts with pictures", lambda m: "" if any(p.image is not None for p in m.prompts) else "no prompt has one"
)
REPLIES = Need(
    "a model that writes replies",
    lambda m: "" if m.model.hf.can_generate() else f"{m.model.name} does not generate",
)
