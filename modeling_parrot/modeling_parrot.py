"""Parrot: vision tower, projector, text-guided language experts and language model (PARROT, section 4.3)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils.generic import can_return_tuple

from configuration_parrot import ParrotConfig
from modeling_parrot.composition_parrot import ParrotCompositionMixin
from modeling_parrot.label_loss_parrot import label_loss
from modeling_parrot.language_experts_parrot import (
    ParrotExpertOutput,
    ParrotLanguageExperts,
    ParrotMultiModalProjector,
    ParrotRouter,
)


@dataclass
class ParrotImageFeatures(BaseModelOutputWithPooling):
    """
    Output of `get_image_features`.

    `pooler_output` is a list with one tensor [S, C] per image, the visual tokens for the language model;
    `last_hidden_state` [num_images, S + prefix, Dv] is the tower's selected hidden state; `router_probs`
    [num_images, E] (float32) are equation 3's probabilities, `None` without experts.
    """

    pooler_output: Any = None
    router_probs: torch.Tensor | None = None


@dataclass
class ParrotModelOutputWithPast(BaseModelOutputWithPast):
    """
    Output of `ParrotModel`: that of the language model, and, when images were encoded, `image_hidden_states`
    [num_images * S, C] and `router_probs` [num_images, E] (float32).
    """

    image_hidden_states: torch.Tensor | None = None
    router_probs: torch.Tensor | None = None


@dataclass
class ParrotCausalLMOutputWithPast(ModelOutput):
    """
    Output of `ParrotForConditionalGeneration`: `loss` (scalar, with labels), `logits` [batch, length, vocabulary],
    and the fields of [`ParrotModelOutputWithPast`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None
    router_probs: torch.Tensor | None = None


# What quantisation leaves as it is unless the caller says otherwise: small beside the language model, and every image
# passes through it. Both names of each part, for models with and without a head.
_NOT_QUANTIZED = ["lm_head"] + [
    prefix + part
    for part in ("vision_tower", "multi_modal_projector", "language_experts")
    for prefix in ("", "model.")
]


class ParrotPreTrainedModel(PreTrainedModel):
    config_class = ParrotConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        # Experts start at zero and the router uniform, so that stage 2 starts exactly where stage 1 ended.
        if isinstance(module, ParrotExpertOutput | ParrotRouter):
            init.zeros_(module.weight)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As `PreTrainedModel.from_pretrained`, and refuses a folder whose projector or experts are not the ones asked
        for. `num_language_experts=E` on a folder saved without experts adds E new ones, which change nothing at first.
        A `quantization_config` that does not list modules to leave out quantises the language model only, not its
        head.

        Raises:
            ValueError: the weights have no projector, a part of the experts only, or another number of experts.
        """
        asked = kwargs.get("num_language_experts", getattr(kwargs.get("config"), "num_language_experts", None))
        saved_config, _ = ParrotConfig.get_config_dict(pretrained_model_name_or_path)
        if (found := saved_config.get("model_type")) != ParrotConfig.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a `{found}`, not a Parrot checkpoint. To build a Parrot from a "
                "vision tower and a language model use `ParrotForConditionalGeneration.from_vision_text_pretrained`, "
                "from a LLaVA `from_llava_pretrained`."
            )
        if asked is not None:
            saved = saved_config.get("num_language_experts", asked)
            if saved not in (0, asked):
                raise ValueError(
                    f"{pretrained_model_name_or_path} was saved with {saved} language experts, but {asked} were asked "
                    f"for. Load it with {saved}, or start from a folder without experts (after the alignment stage)."
                )
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = _only_language_model(kwargs["quantization_config"])
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
        if lost := sorted(key for key in missing if "multi_modal_projector." in key):
            raise ValueError(
                f"{pretrained_model_name_or_path} holds no projector (missing: {', '.join(lost)}), so it is no Parrot "
                "checkpoint. To build one from a vision tower and a language model, use "
                "`ParrotForConditionalGeneration.from_vision_text_pretrained`."
            )
        expert_keys = {key for key, _ in model.named_parameters() if "language_experts." in key}
        lost_experts = sorted(expert_keys & missing)
        if (lost_experts and expert_keys - missing) or any("language_experts." in key for key in unexpected):
            raise ValueError(
                f"The language experts in {pretrained_model_name_or_path} do not fit the configuration "
                f"(num_language_experts={model.config.num_language_experts}, expert_type={model.config.expert_type}); "
                f"missing: {lost_experts or 'none'}; "
                f"unexpected: {sorted(key for key in unexpected if 'language_experts.' in key) or 'none'}. "
                "Load it with the configuration it was saved with."
            )
        if is_deepspeed_zero3_enabled():
            # Here transformers keeps every renaming that it tried, and would undo them all in the names it saves.
            vars(model).pop("_weight_conversions", None)
        return (model, info) if output_loading_info else model


def _only_language_model(quantization_config: Any) -> Any:
    """A copy of the configuration that leaves tower, projector, experts and head out, unless it has a list already."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    quantization_config = copy.deepcopy(quantization_config)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert"):  # bitsandbytes, most others
        if getattr(quantization_config, name, ()) is None:
            setattr(quantization_config, name, list(_NOT_QUANTIZED))
    return quantization_config


class ParrotModel(ParrotPreTrainedModel):
    """Parrot without a language-modelling head."""

    def __init__(self, config: ParrotConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = ParrotMultiModalProjector(config)
        self.language_experts = ParrotLanguageExperts(config) if config.num_language_experts > 0 else None
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def _encode(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, BaseModelOutputWithPooling]:
        """The tower's selected hidden state [N, prefix + patches, Dv] and its whole output."""
        # A frozen tower stores nothing for the backward pass; one that trains (or carries LoRA) does.
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        layers = self.config.vision_config.num_hidden_layers
        selected = self.config.vision_feature_layer % (layers + 1)  # 0: what enters the first layer
        # Only the selected state is kept, and layers after it are not run, unless the caller asks for all states.
        wants_all = kwargs.get("output_hidden_states", False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            with nullcontext(False) if wants_all else self._layers_up_to(selected) as is_last:
                # Two numbers, since transformers before 5.21 counts layers and later states; it is the last in both.
                wanted = [selected - 1, selected] if is_last else True
                outputs = self.vision_tower(
                    pixel_values, **{**kwargs, "output_hidden_states": wanted, "return_dict": True}
                )
        return outputs.hidden_states[-1 if is_last else selected], outputs

    @contextmanager
    def _layers_up_to(self, selected: int) -> Iterator[bool]:
        """
        The tower without the layers after the selected one; their weights stay where they are. False where it stays
        whole: in compiled code, and where the selected state is the first or the last of all.
        """
        tower, layers = self.vision_tower, self.config.vision_config.num_hidden_layers
        found = (
            name for name, part in tower.named_modules() if isinstance(part, nn.ModuleList) and len(part) == layers
        )
        path = None if torch.compiler.is_compiling() else next(found, None)
        if path is None or selected in (0, layers):
            yield False
            return
        owner, _, name = path.rpartition(".")
        encoder, blocks = tower.get_submodule(owner), tower.get_submodule(path)
        setattr(encoder, name, blocks[:selected])
        try:
            yield True
        finally:
            setattr(encoder, name, blocks)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        routing_input_ids: torch.Tensor | None = None,
        routing_attention_mask: torch.Tensor | None = None,
        expert_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> ParrotImageFeatures:
        """
        Encodes images into the visual tokens of the language model (PARROT, equations 2 to 5).

        Args:
            pixel_values: [num_images, 3, H, W], float.
            routing_input_ids: [num_images, L], the token ids of the text that guides each image's experts; made by
                `ParrotProcessor`. Ignored without experts.
            routing_attention_mask: [num_images, L], 1 on text and 0 on padding; all ones if left out. A row of
                zeros only means "no text": its guidance is zero.
            expert_weights: [num_images, E], forces the experts' weights instead of routing, to study them.

        Returns:
            [`ParrotImageFeatures`].

        Raises:
            ValueError: the model has experts and neither routing rows nor expert weights were given, or there are
                not as many of them as images.
        """
        selected, outputs = self._encode(pixel_values, **kwargs)
        features = self.multi_modal_projector(selected)  # [N, prefix + patches, C]
        patch_size = self.config.vision_config.patch_size
        patches = (pixel_values.shape[-2] // patch_size) * (pixel_values.shape[-1] // patch_size)
        prefix = features.shape[1] - patches  # 1 for a CLS token, 0 for towers without one

        router_probs = None
        if self.language_experts is not None:
            if expert_weights is None:
                mask = self._check_routing(pixel_values, routing_input_ids, routing_attention_mask)
                class_feature = features[:, 0] if prefix > 0 else features.mean(dim=1)  # [N, C]
                text_embeddings = self.get_input_embeddings()(routing_input_ids).to(features.dtype)  # [N, L, C]
                router_probs = self.language_experts.route(
                    self.language_experts.guide(class_feature, text_embeddings, mask)
                )
                expert_weights = self.language_experts.select(router_probs)  # [N, E]
            elif expert_weights.shape != (len(pixel_values), self.config.num_language_experts):
                raise ValueError(
                    f"`expert_weights` has shape {tuple(expert_weights.shape)}, but there are {len(pixel_values)} "
                    f"images and {self.config.num_language_experts} experts: give one row of weights per image."
                )
            features = self.language_experts(features, expert_weights)
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, prefix:]

        return ParrotImageFeatures(
            last_hidden_state=selected,
            pooler_output=list(features),
            hidden_states=outputs.hidden_states if kwargs.get("output_hidden_states") else None,
            attentions=outputs.attentions,
            router_probs=router_probs if router_probs is not None else expert_weights,
        )

    def _check_routing(self, pixel_values, input_ids, attention_mask) -> torch.Tensor:
        """Refuses missing or misaligned routing rows; returns the mask [num_images, L]."""
        images, experts = len(pixel_values), self.config.num_language_experts
        if input_ids is None:
            raise ValueError(
                f"This model routes {images} image(s) through {experts} language experts by the text of the prompt, "
                "but `routing_input_ids` is missing. Pass on everything that ParrotProcessor returns "
                "(`routing_input_ids`, `routing_attention_mask`), or force the experts with `expert_weights`."
            )
        if input_ids.ndim != 2 or len(input_ids) != images:
            raise ValueError(
                f"`routing_input_ids` has shape {tuple(input_ids.shape)}, but there are {images} images: it must have "
                "one row per image, in the images' order. Batch images and routing rows together, as ParrotProcessor "
                "does (a pipeline with batch_size > 1 drops rows)."
            )
        if attention_mask is None:
            return torch.ones_like(input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`routing_attention_mask` has shape {tuple(attention_mask.shape)}, `routing_input_ids` has "
                f"{tuple(input_ids.shape)}: they must be equal."
            )
        return attention_mask

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """Where visual tokens go, [batch, length, 1]; refuses a prompt with another number of placeholders."""
        if input_ids is None:
            image_token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(image_token)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        count, expected = mask.sum(), image_features.shape[0]
        if torch.compiler.is_compiling():
            # Compiled code cannot branch on a tensor; this assertion becomes part of the graph.
            torch._assert_async(count == expected, "Image features and image tokens do not match.")
        elif count != expected:
            raise ValueError(
                f"Image features and image tokens do not match: {expected} features (of the images in "
                f"`pixel_values`), but {count} tokens with id {self.config.image_token_id} in the prompt. Let "
                "ParrotProcessor expand the image placeholders, and do not truncate its result inside an image."
            )
        return mask.unsqueeze(-1)

    def _dummy_image_term(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Zero, computed through tower, projector and experts."""
        vision = self.config.vision_config
        pixel_values = inputs_embeds.new_zeros(
            1, getattr(vision, "num_channels", 3), vision.image_size, vision.image_size
        )
        routing = torch.zeros(1, 1, dtype=torch.long, device=inputs_embeds.device)
        return self.get_image_features(pixel_values, routing).pooler_output[0].sum() * 0.0

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        routing_input_ids: torch.Tensor | None = None,
        routing_attention_mask: torch.Tensor | None = None,
        expert_weights: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, ParrotImageFeatures] | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> ParrotModelOutputWithPast:
        """
        Args:
            input_ids: [batch, length], with `config.image_token_id` once per visual token.
            pixel_values: [num_images, 3, H, W], all images of the batch, in reading order.
            attention_mask: [batch, length], 1 on tokens, 0 on padding.
            inputs_embeds: [batch, length, C], instead of `input_ids`.
            routing_input_ids, routing_attention_mask, expert_weights: see `get_image_features`.
            mm_encoder_outputs: `{"image": output of get_image_features}`, instead of `pixel_values`.
            mm_token_type_ids: accepted for callers that pass on all the processor returns; unused.

        Returns:
            [`ParrotModelOutputWithPast`].

        Raises:
            ValueError: conflicting inputs, or placeholders and visual tokens differ in number.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if pixel_values is not None and mm_encoder_outputs is not None:
            raise ValueError(
                "Give `pixel_values` or `mm_encoder_outputs` (images that are encoded already), not both."
            )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is None and pixel_values is not None:
            encoded = self.get_image_features(
                pixel_values, routing_input_ids, routing_attention_mask, expert_weights, return_dict=True
            )
        image_features = None
        if encoded is not None:
            image_features = torch.cat(list(encoded.pooler_output)).to(inputs_embeds.device, inputs_embeds.dtype)
            placeholders = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(placeholders, image_features)
        elif self.config.encode_dummy_image and (past_key_values is None or past_key_values.get_seq_length() == 0):
            inputs_embeds = inputs_embeds + self._dummy_image_term(inputs_embeds).to(inputs_embeds.dtype)

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return ParrotModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            router_probs=getattr(encoded, "router_probs", None),
        )


class ParrotForConditionalGeneration(ParrotPreTrainedModel, ParrotCompositionMixin, GenerationMixin):
    """
    Parrot with its language-modelling head: answers questions about images in the language they were asked in.

    Example:

    ```python
    model = ParrotForConditionalGeneration.from_pretrained("path/or/id")
    processor = ParrotProcessor.from_pretrained("path/or/id")
    chat = [{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "图中是什么？"}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    print(processor.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    ```
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ParrotConfig):
        super().__init__(config)
        self.model = ParrotModel(config)
        decoder = self.model.language_model
        embedding = next(name for name, module in decoder.named_modules() if module is decoder.get_input_embeddings())
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{embedding}.weight"}
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        routing_input_ids: torch.Tensor | None = None,
        routing_attention_mask: torch.Tensor | None = None,
        expert_weights: torch.Tensor | None = None,
        **kwargs,
    ) -> ParrotImageFeatures:
        """See [`ParrotModel.get_image_features`]."""
        return self.model.get_image_features(
            pixel_values, routing_input_ids, routing_attention_mask, expert_weights, **kwargs
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        routing_input_ids: torch.Tensor | None = None,
        routing_attention_mask: torch.Tensor | None = None,
        expert_weights: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, ParrotImageFeatures] | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> ParrotCausalLMOutputWithPast:
        """
        As [`ParrotModel.forward`], and:

        Args:
            labels: [batch, length], token ids to predict, -100 where no loss is wanted (text that is not an answer,
                image placeholders, padding). Not shifted.
            logits_to_keep: compute logits for the last so many positions only (0: all), or for these positions.
            kwargs: `num_items_in_batch` and other arguments of the loss function, and of the language model.

        Returns:
            [`ParrotCausalLMOutputWithPast`].
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            routing_input_ids=routing_input_ids,
            routing_attention_mask=routing_attention_mask,
            expert_weights=expert_weights,
            mm_encoder_outputs=mm_encoder_outputs,
            **{**kwargs, "return_dict": True},
        )
        hidden_states = outputs.last_hidden_state
        loss = logits = shift_labels = None
        if labels is not None and self.training and self.config.logits_for_labels_only:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            supervised = shift_labels != -100
            hidden_states, shift_labels = hidden_states[supervised], shift_labels[supervised]  # [n, C], [n]
            if self.loss_function is LOSS_MAPPING["ForCausalLM"]:
                loss = label_loss(hidden_states, self.lm_head, shift_labels, kwargs.get("num_items_in_batch"))
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            hidden_states = hidden_states[:, kept, :]
        if loss is None:
            logits = self.lm_head(hidden_states)
            if labels is not None:
                vocabulary = self.config.text_config.vocab_size
                loss = self.loss_function(logits, labels, vocabulary, shift_labels=shift_labels, **kwargs)
        return ParrotCausalLMOutputWithPast(
            loss=loss,
            logits=logits if shift_labels is None else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            router_probs=outputs.router_probs,
        )

    def set_training_stage(self, stage: Literal["alignment", "instruction"]) -> dict[str, dict[str, int]]:
        """
        Freezes and unfreezes parameters for one of PARROT's two stages (section 4.4).

        "alignment" trains the projector alone. "instruction" trains projector, language experts and language model
        (with its head); the vision tower stays frozen in both.

        Returns:
            `{"trainable": {part: parameters}, "frozen": {part: parameters}}`; a part that shares all its parameters
            with an earlier one (a tied head) is not listed.

        Raises:
            ValueError: another name of a stage, or a part that it trains is quantised.
        """
        trained = {"alignment": ("projector",), "instruction": ("projector", "experts", "language_model", "head")}
        if stage not in trained:
            raise ValueError(f"Unknown training stage {stage!r}; choose one of {', '.join(trained)}.")
        parts: dict[str, nn.Module | None] = {
            "vision_tower": self.model.vision_tower,
            "projector": self.model.multi_modal_projector,
            "experts": self.model.language_experts,
            "language_model": self.model.language_model,
            "head": self.lm_head,
        }
        for name in trained[stage]:
            if (part := parts[name]) is not None and not all(p.is_floating_point() for p in part.parameters()):
                raise ValueError(
                    f"Stage {stage!r} trains the {name.replace('_', ' ')}, whose weights are quantised. Load it without "
                    "`quantization_config`, or train an adapter: freeze everything and add LoRA with peft."
                )
        report: dict[str, dict[str, int]] = {"trainable": {}, "frozen": {}}
        seen: set[int] = set()
        for name, part in parts.items():
            parameters = [p for p in part.parameters() if id(p) not in seen] if part is not None else []
            seen.update(map(id, parameters))
            for parameter in parameters:
                parameter.requires_grad_(name in trained[stage])
            if parameters:
                report["trainable" if name in trained[stage] else "frozen"][name] = sum(p.numel() for p in parameters)
        return report


__all__ = ["ParrotForConditionalGeneration", "ParrotModel", "ParrotPreTrainedModel"]
