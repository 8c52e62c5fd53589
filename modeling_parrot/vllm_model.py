"""
Parrot in vLLM: its transformers backend, told that visual tokens belong to an image *and* the text that routes it.

vLLM processes images apart from the prompt, keeps the results by a hash of the image, and shares them between requests.
For Parrot both would be silently wrong: the experts would see no question, and a second question about an image would
get the visual tokens of the first. So each image carries its routing row, cut out of the prompt as `ParrotProcessor` cuts
it, and the row is part of the image's hash. With `routing_scope: turn` a row does not depend on what follows, and what
is cached of a chat stays valid as it grows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from vllm.model_executor.models.transformers.causal import CausalMixin
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalMixin,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.hasher import MultiModalHasher


# On their way through vLLM the rows are an option of the processor, of which each image has its own value.
ROWS = "routing_input_ids"


def _without_rows(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != ROWS}


class ParrotVLLMProcessor(MultiModalProcessor):
    """vLLM's processor for transformers models, with a routing row for each image."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        processor = self.info.get_hf_processor()
        images = inputs.mm_data_items.get_all_counts().get("image", 0)
        if images and processor.routing_scope is not None:
            rows = processor.routing_rows(processor.tokenizer.decode(inputs.prompt))
            if len(rows) != images:
                raise ValueError(
                    f"The prompt has {len(rows)} {processor.image_token} token(s), but there are {images} image(s). "
                    "Put one into the prompt for each image, or let the chat template do it."
                )
            options = {**inputs.hf_processor_mm_kwargs, ROWS: rows}
            inputs = replace(inputs, hf_processor_mm_kwargs=options)
        return super().apply(inputs, timing_ctx)

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        """The hash of each image, of which its own row is a part and those of other images are not."""
        options = inputs.hf_processor_mm_kwargs
        hashes = dict(super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=_without_rows(options))))
        if ROWS in options:
            algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
            hashes["image"] = [
                MultiModalHasher.hash_kwargs(algorithm, image=image, **{ROWS: row})
                for image, row in zip(hashes["image"], options[ROWS], strict=True)
            ]
        return hashes

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Mapping[str, list[bool]]) -> Any:
        options = inputs.hf_processor_mm_kwargs
        if ROWS not in options:
            return options
        rows = zip(options[ROWS], mm_is_cached["image"], strict=True)
        return {**options, ROWS: [row for row, is_cached in rows if not is_cached]}

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        """What vLLM calls `ParrotProcessor` with: the images and their placeholders, without the prompt."""
        inputs = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        if inputs.hf_data:
            inputs.hf_data["routing_text"] = ""  # the rows are known already
        return inputs

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        outputs = super()._apply_hf_processor_main(mm_items, _without_rows(hf_kwargs))
        outputs.pop("routing_attention_mask", None)
        outputs.pop(ROWS, None)
        if ROWS in hf_kwargs and "pixel_values" in outputs:
            # As a list, one entry per image: rows differ in length, and which are batched is decided later.
            outputs[ROWS] = [torch.tensor(row, dtype=torch.long) for row in hf_kwargs[ROWS]]
        return outputs

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any) -> Any:
        return super()._get_prompt_updates(mm_items, _without_rows(hf_processor_mm_kwargs), out_mm_kwargs)


@MULTIMODAL_REGISTRY.register_processor(
    ParrotVLLMProcessor, info=MultiModalProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class ParrotForVLLM(MultiModalMixin, CausalMixin):
    """`ParrotModel` with vLLM's attention, linear layers and head."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """For templates in which vLLM finds no loop over the parts of a message: images then come first."""
        return "<image>" if modality == "image" else None

    def _process_image_input(self, **kwargs: Any) -> list[torch.Tensor] | None:
        """Images of several requests meet here; their rows are padded to one length."""
        rows: Sequence[torch.Tensor] | torch.Tensor | None = kwargs.pop(ROWS, None)
        if rows is not None:
            kwargs[ROWS] = pad_sequence(list(rows), batch_first=True)  # [N, L]
            masks = [torch.ones_like(row) for row in rows]
            kwargs["routing_attention_mask"] = pad_sequence(masks, batch_first=True)  # [N, L]
        return super()._process_image_input(**kwargs)
