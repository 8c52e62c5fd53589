"""Building a Parrot from other models: from a tower and a language model, from a LLaVA, and back to a LLaVA."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)
from transformers.integrations import deepspeed as zero3

from configuration_parrot import ParrotConfig


_LLAVA_FEATURE_SETTINGS = ("vision_feature_layer", "vision_feature_select_strategy")


@contextmanager
def _loading_whole() -> Iterator[None]:
    """
    Lets `from_pretrained` load whole weights although a Trainer has switched on ZeRO-3.

    transformers would partition each part as it loads, but parts run here before they are one model, and a partitioned
    part cannot run. DeepSpeed partitions the model when training starts.
    """
    reference = zero3._hf_deepspeed_config_weak_ref
    zero3.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        zero3._hf_deepspeed_config_weak_ref = reference


class ParrotCompositionMixin:
    """Part of [`ParrotForConditionalGeneration`]: the ways to build one from other models."""

    @classmethod
    @_loading_whole()
    def from_vision_text_pretrained(
        cls: Any,
        vision_model_name_or_path: str | os.PathLike,
        text_model_name_or_path: str | os.PathLike,
        *,
        image_token_id: int | None = None,
        dtype: torch.dtype | str | None = None,
        **adapter_options: Any,
    ):
        """
        Builds a Parrot from a vision tower and a language model, with a new projector and new experts.

        Args:
            vision_model_name_or_path: id or folder of a vision transformer (CLIP, Chinese-CLIP, SigLIP, ...). Of a
                dual encoder, its vision half is taken.
            text_model_name_or_path: id or folder of a causal language model whose head is one bias-free product.
            image_token_id: id of the image placeholder. By default that of `<image>` in the language model's
                tokenizer, or the first id after the tokenizer's last. Embeddings grow only if they have no such row.
            dtype: of all weights; by default the language model's own.
            adapter_options: fields of [`ParrotConfig`], e.g. `num_language_experts=6`.

        Raises:
            ValueError: the tower lacks weights, or the language model's head computes more than one product.
        """
        vision_config = AutoConfig.from_pretrained(vision_model_name_or_path)
        vision_config = getattr(vision_config, "vision_config", vision_config)
        if type(vision_config) not in MODEL_MAPPING:
            raise ValueError(f"{vision_model_name_or_path} is a {vision_config.model_type}, which is no vision tower.")
        language_model = AutoModelForCausalLM.from_pretrained(text_model_name_or_path, dtype=dtype or "auto")
        _check_head(language_model)
        tower_class: Any = MODEL_MAPPING[type(vision_config)]
        vision_tower, info = tower_class.from_pretrained(
            vision_model_name_or_path, config=vision_config, dtype=language_model.dtype, output_loading_info=True
        )
        if info["missing_keys"]:
            raise ValueError(
                f"{vision_model_name_or_path} lacks weights of its vision tower: {sorted(info['missing_keys'])}."
            )
        if image_token_id is None:
            tokenizer = AutoTokenizer.from_pretrained(text_model_name_or_path)
            image_token_id = tokenizer.get_vocab().get("<image>", len(tokenizer))
        size = vision_config.image_size
        with torch.no_grad():
            positions = vision_tower(torch.zeros(1, 3, size, size, dtype=vision_tower.dtype)).last_hidden_state.shape[
                1
            ]
        if adapter_options.get("vision_feature_select_strategy") == "default":
            positions = (size // vision_config.patch_size) ** 2
        config = ParrotConfig(
            vision_config=vision_tower.config,  # the tower's own, so that later settings reach it
            text_config=language_model.config,
            image_token_id=image_token_id,
            image_seq_length=positions,
            **adapter_options,
        )
        return cls._assemble(config, vision_tower, language_model, language_model.get_output_embeddings())

    @classmethod
    @_loading_whole()
    def from_llava_pretrained(
        cls: Any,
        llava_model_name_or_path: str | os.PathLike,
        *,
        dtype: torch.dtype | str | None = None,
        **adapter_options: Any,
    ):
        """
        Turns a LLaVA checkpoint into a Parrot: new experts start at zero, so that it answers as the LLaVA did, and
        the instruction stage alone makes it multilingual.

        Args:
            llava_model_name_or_path: id or folder of a `LlavaForConditionalGeneration`.
            dtype: of all weights; by default the checkpoint's.
            adapter_options: fields of [`ParrotConfig`]; what LLaVA's own config says is taken from there.

        Raises:
            ValueError: the checkpoint concatenates several layers of its tower.
        """
        llava = LlavaForConditionalGeneration.from_pretrained(llava_model_name_or_path, dtype=dtype or "auto")
        if not isinstance(llava.config.vision_feature_layer, int):
            raise ValueError(
                f"{llava_model_name_or_path} concatenates the tower's layers {llava.config.vision_feature_layer}; "
                "Parrot reads one layer."
            )
        shared = ("projector_hidden_act", "multimodal_projector_bias", "image_seq_length", *_LLAVA_FEATURE_SETTINGS)
        config = ParrotConfig(
            vision_config=llava.config.vision_config,
            text_config=llava.config.text_config,
            image_token_id=llava.config.image_token_id,
            **{**{name: getattr(llava.config, name) for name in shared}, **adapter_options},
        )
        model = cls._assemble(config, llava.model.vision_tower, llava, llava.lm_head)
        model.model.multi_modal_projector.load_state_dict(llava.model.multi_modal_projector.state_dict())
        return model

    @classmethod
    def _assemble(cls: Any, config, vision_tower, language_model, lm_head):
        """Puts loaded parts into a model whose projector and experts are new; loaded weights are not copied."""
        for part in (config.vision_config, config.text_config):
            if os.path.exists(part._name_or_path):
                part._name_or_path = ""  # a folder of this machine, which nobody else should find in a checkpoint
        with torch.device("meta"):
            model = cls(config)
        decoder = language_model.get_decoder()
        if type(decoder) is not type(model.model.language_model):
            raise ValueError(
                f"{type(language_model).__name__} has a {type(decoder).__name__} inside, but AutoModel builds a "
                f"{type(model.model.language_model).__name__} from its config. Parrot needs a decoder that can be "
                "rebuilt from its own config."
            )
        model.model.vision_tower, model.model.language_model, model.lm_head = vision_tower, decoder, lm_head
        for part in (model.model.multi_modal_projector, model.model.language_experts):
            if part is not None:
                part.to_empty(device=decoder.device).to(decoder.dtype)
                part.apply(model._init_weights)
        model.tie_weights()
        rows = model.get_input_embeddings().weight.shape[0]
        if config.image_token_id >= rows:
            model.resize_token_embeddings(config.image_token_id + 1, pad_to_multiple_of=64)
        if language_model.generation_config is not None:
            model.generation_config = language_model.generation_config
        return model.eval()

    def to_llava(self: Any) -> LlavaForConditionalGeneration:
        """
        A native `LlavaForConditionalGeneration` that computes the same and shares this model's parameters.

        Raises:
            ValueError: the model has language experts, which LLaVA cannot hold.
        """
        if self.config.num_language_experts > 0:
            raise ValueError(
                f"This model has {self.config.num_language_experts} language experts; only a model with none can be "
                "exported to LLaVA."
            )
        config = LlavaConfig(
            vision_config=self.config.vision_config,
            text_config=self.config.text_config,
            image_token_index=self.config.image_token_id,
            image_seq_length=self.config.image_seq_length,
            projector_hidden_act=self.config.projector_hidden_act,
            multimodal_projector_bias=self.config.multimodal_projector_bias,
            tie_word_embeddings=self.config.tie_word_embeddings,
            **{name: getattr(self.config, name) for name in _LLAVA_FEATURE_SETTINGS},
        )
        with torch.device("meta"):
            llava = LlavaForConditionalGeneration(config)
        llava.model.vision_tower = self.model.vision_tower
        llava.model.language_model = self.model.language_model
        llava.model.multi_modal_projector.load_state_dict(self.model.multi_modal_projector.state_dict(), assign=True)
        llava.lm_head = self.lm_head
        llava.generation_config = self.generation_config
        return llava.eval()


@torch.no_grad()
def _check_head(language_model: PreTrainedModel) -> None:
    """
    Refuses a language model whose logits are not one bias-free product of its last hidden state.

    The hidden state is replaced by a large one on its way to the head, so that soft caps show as well.
    """
    name = type(language_model).__name__
    head = language_model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ValueError(
            f"The head of {name} is {head}; Parrot supports language models whose head is one linear layer without "
            "bias (Qwen2, Qwen3, Llama, Vicuna, Mistral, Gemma, ...)."
        )
    seen: dict[str, torch.Tensor] = {}

    def enlarge(module, args, output):
        output.last_hidden_state = seen["hidden"] = output.last_hidden_state * 1000
        return output

    hook = language_model.get_decoder().register_forward_hook(enlarge)
    try:
        # Several tokens, since a padding token's embedding may be zero.
        logits = language_model(torch.arange(8, device=head.weight.device)[None]).logits
    finally:
        hook.remove()
    expected = head(seen["hidden"])
    if not torch.allclose(logits.float(), expected.float(), rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise ValueError(
            f"The head of {name} does more than one product (scaling or a soft cap), and Parrot would compute other "
            "logits. Choose a language model with a plain head (Qwen2, Qwen3, Llama, Vicuna, Mistral, Gemma, ...)."
        )


__all__ = ["ParrotCompositionMixin"]
