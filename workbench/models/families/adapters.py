"""TransformerLens adapters for the architectures it does not know, in its own terms.

They are registered through its own extension points: `register_adapters` for this process, and the entry points in
pyproject.toml for anyone who uses TransformerLens alone. All keep transformers' own attention (rotary steps in three
parts, windows, image blocks) and put hooks on what goes in and out of it: queries, keys and values as projected
(`q.hook_out`, …), after a query norm (`q_norm.hook_out`), and head outputs before W_O (`o.hook_in`).

This file and `workbench.models.bridge` are the only ones that import TransformerLens.
"""

from typing import Any

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    NormalizationBridge,
    RMSNormalizationBridge,
    UnembeddingBridge,
    VisionProjectionBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.block import ParallelBlockBridge
from transformer_lens.model_bridge.supported_architectures.idefics3 import Idefics3ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.phi3 import Phi3ArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen2_5_vl import Qwen2_5_VLArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen3_vl import Qwen3VLArchitectureAdapter
from transformer_lens.model_bridge.supported_architectures.qwen3_vl_moe import Qwen3VLMoeArchitectureAdapter


def image_parts(tower: str, projector: str) -> dict[str, Any]:
    """Components of the image tower, and of what carries its output to the decoder, at these paths; empty for none."""
    found: dict[str, Any] = {"vision_encoder": GeneralizedComponent(name=tower)} if tower else {}
    return found | ({"vision_projector": VisionProjectionBridge(name=projector)} if projector else {})


class NativeDecoderAdapter(ArchitectureAdapter):
    """A decoder with transformers' own attention, and the image tower beside it. Subclasses fill in the names.

    Attributes:
        decoder: Path of the text decoder (embedding, layers, norm) in the model.
        tower: Path of the image tower; empty for none.
        projector: Path of what carries its output to the decoder; empty for none.
        norms: Hook names to names of the norms in a layer.
    """

    decoder = "model.language_model"
    tower = "model.vision_tower"
    projector = "model.multi_modal_projector"
    norms = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._set_rms_rotary_defaults()
        self.cfg.is_multimodal = bool(self.tower)
        self.cfg.attn_implementation = "eager"
        self.cfg.default_prepend_bos = False
        self._extract_vision_dims(cfg)
        self.weight_processing_conversions = self.conversions()
        self.component_mapping = {
            **image_parts(self.tower, self.projector),
            "embed": EmbeddingBridge(name=f"{self.decoder}.embed_tokens"),
            "blocks": self.blocks(),
            "ln_final": self.norm(f"{self.decoder}.norm"),
            "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
        }

    def conversions(self) -> dict[str, Any]:
        return {**self._qkvo_weight_conversions()}

    def blocks(self) -> Any:
        return BlockBridge(name=f"{self.decoder}.layers", submodules=self.block_parts())

    def block_parts(self) -> dict[str, Any]:
        norms = {hook: self.norm(name) for hook, name in self.norms.items()}
        return {**norms, "attn": self.attention(), "mlp": self.mlp()}

    def norm(self, name: str, *, optional: bool = False) -> Any:
        return RMSNormalizationBridge(name=name, config=self.cfg, optional=optional)

    def attention(self, *, optional: bool = False) -> Any:
        parts: dict[str, Any] = {part: LinearBridge(name=f"{part}_proj") for part in "qkvo"}
        parts |= {part: self.norm(part, optional=True) for part in ("q_norm", "k_norm")}
        return AttentionBridge(
            name="self_attn", config=self.cfg, submodules=parts, maintain_native_attention=True,
            requires_attention_mask=True, optional=optional,
        )  # fmt: skip

    def mlp(self) -> Any:
        return self._gated_mlp()


class Qwen2VLAdapter(NativeDecoderAdapter):
    """Qwen2VLForConditionalGeneration: rotary positions in three parts, biases on queries, keys and values."""

    tower = "model.visual"
    projector = "model.visual.merger"

    def conversions(self) -> dict[str, Any]:
        return {**self._qkvo_weight_conversions(include_biases=True)}


class AyaVisionAdapter(NativeDecoderAdapter):
    """AyaVisionForConditionalGeneration: attention and MLP read the same normed input; true layer norms."""

    norms = {"ln1": "input_layernorm"}

    def __init__(self, cfg: Any) -> None:
        cfg.parallel_attn_mlp = True
        super().__init__(cfg)
        self.cfg.normalization_type = "LN"
        self.cfg.uses_rms_norm = self.cfg.final_rms = False

    def blocks(self) -> Any:
        return ParallelBlockBridge(name=f"{self.decoder}.layers", submodules=self.block_parts())

    def norm(self, name: str, *, optional: bool = False) -> Any:
        return NormalizationBridge(
            name=name, config=self.cfg, use_native_layernorm_autograd=True, uses_rms_norm=False, optional=optional
        )


class Cohere2VisionAdapter(AyaVisionAdapter):
    """Cohere2VisionForConditionalGeneration (Command-A-Vision): the same text decoder."""


class PaliGemmaAdapter(NativeDecoderAdapter):
    """PaliGemmaForConditionalGeneration over Gemma (two norms a layer) or Gemma 2 (four)."""

    norms = {
        "ln1": "input_layernorm",
        "ln1_post": "post_attention_layernorm",
        "ln2": "pre_feedforward_layernorm",
        "ln2_post": "post_feedforward_layernorm",
    }

    def __init__(self, cfg: Any) -> None:
        # Gemma's norms scale by 1 + weight.
        cfg.rmsnorm_uses_offset = True
        if getattr(cfg, "output_logits_soft_cap", None) is None:
            self.norms = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
        super().__init__(cfg)


class InternVLAdapter(NativeDecoderAdapter):
    """InternVLForConditionalGeneration over Qwen2 or Qwen3 text."""


class MllamaAdapter(NativeDecoderAdapter):
    """MllamaForConditionalGeneration: some layers attend to the picture instead of the prompt."""

    tower = "model.vision_model"

    def block_parts(self) -> dict[str, Any]:
        parts = super().block_parts()
        parts["attn"] = self.attention(optional=True)
        parts["cross_attn"] = GeneralizedComponent(name="cross_attn", optional=True)
        return parts


class FusedAdapter(Phi3ArchitectureAdapter):
    """Phi-3's decoder, whose fused projections TransformerLens splits, with an image tower inside it."""

    tower = ""
    projector = ""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.cfg.is_multimodal = True
        self._extract_vision_dims(cfg)
        self.components.update(image_parts(self.tower, self.projector))


class Phi4MultimodalAdapter(FusedAdapter):
    """Phi4MultimodalForCausalLM."""

    tower = "model.embed_tokens_extend.image_embed.img_processor"


class Phi3VAdapter(FusedAdapter):
    """Phi3VForCausalLM, in our own class (`workbench.models.families.phi3_vision`)."""

    tower = "model.vision_embed_tokens.img_processor"
    projector = "model.vision_embed_tokens.img_projection"


class SmolVLMAdapter(Idefics3ArchitectureAdapter):
    """SmolVLMForConditionalGeneration: Idefics3's module tree."""


OURS: dict[str, type[ArchitectureAdapter]] = {
    "Qwen2VLForConditionalGeneration": Qwen2VLAdapter,
    "AyaVisionForConditionalGeneration": AyaVisionAdapter,
    "Cohere2VisionForConditionalGeneration": Cohere2VisionAdapter,
    "PaliGemmaForConditionalGeneration": PaliGemmaAdapter,
    "InternVLForConditionalGeneration": InternVLAdapter,
    "MllamaForConditionalGeneration": MllamaAdapter,
    "Phi3VForCausalLM": Phi3VAdapter,
    "Phi4MultimodalForCausalLM": Phi4MultimodalAdapter,
    "SmolVLMForConditionalGeneration": SmolVLMAdapter,
}
# TransformerLens has these, but asks for torchvision, though only the video processor needs it. Ours only lift that
# demand, so they replace its own and are no entry points.
RELAXED: dict[str, type[ArchitectureAdapter]] = {
    architecture: type(adapter.__name__, (adapter,), {"required_libraries": [], "__doc__": adapter.__doc__})
    for architecture, adapter in (
        ("Qwen2_5_VLForConditionalGeneration", Qwen2_5_VLArchitectureAdapter),
        ("Qwen3VLForConditionalGeneration", Qwen3VLArchitectureAdapter),
        ("Qwen3VLMoeForConditionalGeneration", Qwen3VLMoeArchitectureAdapter),
    )
}


def register_adapters() -> None:
    """Make TransformerLens know our adapters in this process."""
    ArchitectureAdapterFactory.discover_entry_points()
    for architecture, adapter in {**OURS, **RELAXED}.items():
        ArchitectureAdapterFactory.register_adapter(architecture, adapter)


def has_adapter(architecture: str) -> bool:
    """Whether TransformerLens, with our adapters registered, knows an architecture."""
    register_adapters()
    return architecture in ArchitectureAdapterFactory._adapters
