"""Configuration of Parrot, and the step that lets a saved folder load where this package is not installed."""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


# The modules a checkpoint carries, by their absolute names. In a checkpoint they lie side by side.
SHIPPED_MODULES = (
    "chat_templates_parrot",
    "configuration_parrot",
    "instructions_parrot",
    "modeling_parrot.composition_parrot",
    "modeling_parrot.label_loss_parrot",
    "modeling_parrot.language_experts_parrot",
    "modeling_parrot.modeling_parrot",
    "processing_parrot",
)

AUTO_MAP = {
    "AutoConfig": "configuration_parrot.ParrotConfig",
    "AutoModel": "modeling_parrot.ParrotModel",
    "AutoModelForCausalLM": "modeling_parrot.ParrotForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_parrot.ParrotForConditionalGeneration",
    "AutoProcessor": "processing_parrot.ParrotProcessor",
}

# What a language model's config says when its head is more than one bias-free product. Such a head would be
# reproduced wrongly, so the config is refused. Value: the setting that means "nothing extra happens".
_NEUTRAL_HEAD_SETTINGS = {
    "final_logit_softcapping": None,
    "lm_head_bias": False,
    "lm_head_multiplier": 1.0,
    "logit_scale": 1.0,
    "logits_mup_width_multiplier": 1.0,
    "logits_scaling": 1.0,
    "logits_soft_cap": None,
    "output_logit_soft_cap": None,
}

_OWN_IMPORT = re.compile(r"^from (?:modeling_parrot\.)?(\w+_parrot) import", flags=re.MULTILINE)


def is_remote_code(module_name: str) -> bool:
    """Whether a module was loaded from a checkpoint by transformers (`trust_remote_code=True`)."""
    return module_name.startswith("transformers_modules.")


def save_shipped_code(save_directory: str | os.PathLike) -> list[Path]:
    """
    Copies the modules a checkpoint needs into its folder, side by side, with their imports of one another made
    relative: the only form in which transformers follows remote code.

    A class that was itself loaded from a checkpoint does nothing here: transformers copies such code itself.

    Args:
        save_directory: the checkpoint's folder; it must exist.

    Returns:
        The files written (none for a class loaded from a checkpoint).

    Raises:
        ModuleNotFoundError: a shipped module is not installed beside this one.
    """
    if is_remote_code(__name__):
        return []
    written = []
    for module_name in SHIPPED_MODULES:
        spec = importlib.util.find_spec(module_name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                f"`{module_name}` is not installed, so the checkpoint in {save_directory} would not load with "
                "`trust_remote_code=True`. Install the whole package: `pip install modeling-parrot`."
            )
        source = Path(spec.origin).read_text(encoding="utf-8")
        target = Path(save_directory) / Path(spec.origin).name
        target.write_text(_OWN_IMPORT.sub(r"from .\1 import", source), encoding="utf-8")
        written.append(target)
    return written


@strict
class ParrotConfig(PreTrainedConfig):
    r"""
    Configuration of [`ParrotModel`] and [`ParrotForConditionalGeneration`]: a vision tower, a two-layer projector,
    a text-guided mixture of language experts and a language model (PARROT, section 4.3).

    Args:
        vision_config (`dict` or `PreTrainedConfig`): any vision transformer of transformers. Default: CLIP ViT-L/14
            at 336 px.
        text_config (`dict` or `PreTrainedConfig`): any decoder whose head is one bias-free product. Default: Qwen2.
        image_token_id (`int`): id of the placeholder that image features replace in `input_ids`.
        image_seq_length (`int`): placeholders per image, e.g. 577 for ViT-L/14 at 336 px with its CLS token.
        projector_hidden_act (`str`): activation between the projector's two layers.
        multimodal_projector_bias (`bool`): whether the projector's layers have biases.
        vision_feature_layer (`int`): hidden state of the tower that is used; -2 is the last but one layer's output.
        vision_feature_select_strategy (`"full"` or `"default"`): "full" hands CLS and patches to the language model,
            "default" the patches only. The CLS token guides the router in both cases.
        num_language_experts (`int`): E. 0 is the architecture of LLaVA and LRM-LLaVA.
        num_active_experts (`int`, *optional*): k of equation 4. The k most probable experts of each image run;
            `None` means all.
        expert_type (`"swiglu"` or `"mlp"`): "swiglu" has gate, up and down projections without bias (the authors'
            code), "mlp" is Linear, activation, Linear with biases (the paper, section 5.1).
        expert_intermediate_size (`int`): hidden units of one expert.
        expert_hidden_act (`str`): activation inside the experts.
        expert_scale (`float`): alpha of equation 5, the factor of the experts' output.
        residual_scale (`float`): beta, the factor of the projected features; 1 in equation 5. The authors' released
            checkpoints use 0.1, or 0 without the residual.
        routing_scope (`"turn"` or `"prompt"`): the text that guides the router: the user's text of the turn that
            carries the image, or all text of the sample that is not an answer (the authors' checkpoints).
            The processor reads it; the model only sees the resulting rows.
        encode_dummy_image (`bool`): a batch without images still runs tower, projector and experts, on a blank
            image whose result is multiplied by zero. Needed when parameters are sharded over processes (ZeRO-3,
            FSDP) or gradients are synchronised (DDP), where all ranks must touch the same modules.
        logits_for_labels_only (`bool`): while training with labels, compute logits only where there is a label, and
            return none: image placeholders and questions have no loss, so most of the head's work would be for
            nothing. The loss is the same. Off where a caller reads logits in training (label smoothing).
        tie_word_embeddings (`bool`): follows the language model's own setting.

    Example:

    ```python
    >>> from modeling_parrot import ParrotConfig
    >>> ParrotConfig(num_language_experts=6).expert_type
    'swiglu'

    ```
    """

    model_type = "parrot"
    keys_to_ignore_at_inference = ["past_key_values", "image_hidden_states", "router_probs"]

    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="clip_vision_model",
            init_kwargs={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 151646
    image_seq_length: int = 577
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["full", "default"] = "full"
    num_language_experts: int = 6
    num_active_experts: int | None = None
    expert_type: Literal["swiglu", "mlp"] = "swiglu"
    expert_intermediate_size: int = 4096
    expert_hidden_act: str = "silu"
    expert_scale: float = 1.0
    residual_scale: float = 1.0
    routing_scope: Literal["turn", "prompt"] = "turn"
    encode_dummy_image: bool = False
    logits_for_labels_only: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # Language models store the setting in their own config; the composite's tying reads this one.
        if getattr(self.text_config, "tie_word_embeddings", False):
            self.tie_word_embeddings = True

    def validate_experts(self):
        """Part of the strict validation: counts and sizes of the experts."""
        experts, active = self.num_language_experts, self.num_active_experts
        if experts < 0:
            raise ValueError(f"`num_language_experts` is {experts}; it must be 0 (no experts) or more.")
        if active is not None and experts > 0 and not 1 <= active <= experts:
            raise ValueError(
                f"`num_active_experts` is {active}, but there are {experts} experts. Give a number from 1 to "
                f"{experts}, or None for all."
            )
        if self.expert_intermediate_size < 1:
            raise ValueError(f"`expert_intermediate_size` is {self.expert_intermediate_size}; it must be positive.")

    def validate_language_model_head(self):
        """Part of the strict validation: the language model's head must be one bias-free product."""
        for name, neutral in _NEUTRAL_HEAD_SETTINGS.items():
            value = getattr(self.text_config, name, neutral)
            if value is not None and value != neutral:
                raise ValueError(
                    f"The language model `{self.text_config.model_type}` has `{name}={value}`: its head is more than "
                    "one bias-free product, and Parrot would compute other logits than the model itself. Choose a "
                    "language model with a plain head (Qwen2, Qwen3, Llama, Vicuna, Mistral, Gemma, ...)."
                )

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        """As `PreTrainedConfig.save_pretrained`, and writes the shipped code beside `config.json`."""
        if not is_remote_code(__name__):
            self.auto_map = dict(AUTO_MAP)
            os.makedirs(save_directory, exist_ok=True)
            save_shipped_code(save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


__all__ = ["ParrotConfig"]
