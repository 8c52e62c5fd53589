"""Parrot's processor: images, placeholders, chat templates, and the text that guides each image's experts."""

import os
import re
from typing import Any, Literal

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, BatchFeature
from transformers.image_utils import make_flat_list_of_images
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.processing_utils import MultiModalData, ProcessorMixin

from chat_templates_parrot import (
    CHAT_TEMPLATES,
    Markers,
    RenderedPrompt,
    Turn,
    find_markers,
    has_generation_block,
    turns_of_messages,
    turns_of_text,
)
from configuration_parrot import AUTO_MAP, is_remote_code, save_shipped_code
from instructions_parrot import Instructions, build_instruction, build_row, load_instructions, parse_pivot


IMAGE_TOKEN = "<image>"

# Options of `apply_chat_template` that shape the text, and those that do not.
_RENDER_OPTIONS = ("chat_template", "tools", "documents", "add_generation_prompt", "continue_final_message")
_OTHER_OPTIONS = ("tokenize", "return_dict", "return_tensors", "processor_kwargs", "return_assistant_tokens_mask")


class ParrotProcessor(ProcessorMixin):
    r"""
    Turns images and text into the inputs of [`ParrotForConditionalGeneration`].

    Beside `input_ids`, `attention_mask`, `mm_token_type_ids` [batch, length] and `pixel_values`
    [num_images, 3, H, W], it returns one *routing row* per image, the tokens of the text that guides the image's
    language experts: `routing_input_ids` and `routing_attention_mask` [num_images, L]. They never hold an answer.

    Args:
        image_processor: pads to a square with the mean colour (PARROT, LLaVA-1.5) and resizes.
        tokenizer: a fast tokenizer that knows the image token.
        patch_size (`int`): of the vision tower, in pixels.
        num_additional_image_tokens (`int`): tokens the tower puts before the patches (1 for a CLS token).
        vision_feature_select_strategy (`"full"` or `"default"`): as in [`ParrotConfig`].
        routing_scope (`"turn"`, `"prompt"` or `None`): as in [`ParrotConfig`]; `None` makes no routing rows.
        image_token (`str`): the placeholder in text.
        chat_template (`str`): a Jinja template.
        instructions (`dict`, *optional*): wording of the instruction formats, see `instructions_parrot`. By default
            the package's, in 13 languages; a saved processor carries what it had.

    Raises:
        ValueError: the tokenizer has no image token, or cannot map tokens to characters.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        patch_size: int = 14,
        num_additional_image_tokens: int = 1,
        vision_feature_select_strategy: Literal["full", "default"] = "full",
        routing_scope: Literal["turn", "prompt"] | None = "turn",
        image_token: str = IMAGE_TOKEN,
        chat_template: str | None = None,
        instructions: Instructions | None = None,
        **kwargs,
    ):
        if tokenizer is not None:
            vocabulary = tokenizer.get_vocab()
            if image_token not in vocabulary:
                raise ValueError(
                    f"The tokenizer does not know the image token {image_token!r}. Add it with "
                    f"`tokenizer.add_special_tokens({{'additional_special_tokens': [{image_token!r}]}})`, or build the "
                    "processor with `ParrotProcessor.from_vision_text_pretrained`, which does."
                )
            if not tokenizer.is_fast:
                raise ValueError(
                    f"{type(tokenizer).__name__} cannot map tokens to characters, which routing rows and training "
                    "labels need. Load the fast version of this tokenizer."
                )
            self.image_token_id = vocabulary[image_token]
        if type(image_processor).__name__ == "LlavaImageProcessor":
            # Where torchvision is installed, transformers loads a saved folder with torchvision's interpolation, which
            # gives other pixels (up to 0.015 after normalisation). Same settings, PIL's interpolation:
            image_processor = LlavaImageProcessorPil.from_dict(image_processor.to_dict())
        self.image_token = image_token
        self.patch_size = patch_size
        self.num_additional_image_tokens = num_additional_image_tokens
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.routing_scope = routing_scope
        self.instructions = instructions if instructions or is_remote_code(__name__) else load_instructions()
        self._markers: dict[str, Markers | None] = {}
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    # ------------------------------------------------------------------ building and saving

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision_model_name_or_path: str | os.PathLike,
        text_model_name_or_path: str | os.PathLike,
        *,
        chat_template: str | None = None,
        routing_scope: Literal["turn", "prompt"] | None = "turn",
        vision_feature_select_strategy: Literal["full", "default"] = "full",
    ) -> "ParrotProcessor":
        """
        The processor that goes with `ParrotForConditionalGeneration.from_vision_text_pretrained` of the same two.

        Args:
            vision_model_name_or_path: id or folder with the tower's config and, for its mean, standard deviation and
                interpolation, its image processor.
            text_model_name_or_path: id or folder of the language model's tokenizer. `<image>` is added if missing.
            chat_template: "chatml", "vicuna" or a Jinja template. By default "chatml" if the tokenizer has
                `<|im_start|>`, else "vicuna".
            routing_scope, vision_feature_select_strategy: as in [`ParrotConfig`].
        """
        vision_config = AutoConfig.from_pretrained(vision_model_name_or_path)
        vision_config = getattr(vision_config, "vision_config", vision_config)
        original = AutoImageProcessor.from_pretrained(vision_model_name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(text_model_name_or_path)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_special_tokens(
                {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
            )
        if chat_template is None:
            chat_template = "chatml" if "<|im_start|>" in tokenizer.get_vocab() else "vicuna"
        return cls(
            image_processor=square_image_processor(original, vision_config.image_size),
            tokenizer=tokenizer,
            patch_size=vision_config.patch_size,
            num_additional_image_tokens=_num_prefix_tokens(vision_config),
            vision_feature_select_strategy=vision_feature_select_strategy,
            routing_scope=routing_scope,
            chat_template=CHAT_TEMPLATES.get(chat_template, chat_template),
        )

    @classmethod
    def from_llava_pretrained(cls, llava_model_name_or_path: str | os.PathLike, **options) -> "ParrotProcessor":
        """
        The processor that goes with `ParrotForConditionalGeneration.from_llava_pretrained` of the same LLaVA.

        Args:
            llava_model_name_or_path: id or folder of a `LlavaForConditionalGeneration` with its processor.
            options: as in `from_vision_text_pretrained`.
        """
        strategy = AutoConfig.from_pretrained(llava_model_name_or_path).vision_feature_select_strategy
        options = {"vision_feature_select_strategy": strategy, **options}
        return cls.from_vision_text_pretrained(llava_model_name_or_path, llava_model_name_or_path, **options)

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As `ProcessorMixin.save_pretrained`, and writes the shipped code beside the files."""
        if not is_remote_code(__name__):
            self.auto_map = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
            os.makedirs(save_directory, exist_ok=True)
            save_shipped_code(save_directory)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    # ------------------------------------------------------------------ images

    def _process_images(self, images, **kwargs):
        """
        As `ProcessorMixin._process_images`, the same pixels in less time for photographs: they are padded and resized before
        they become arrays, and then each of the 256 levels is looked up instead of rescaled and normalised pixel by pixel.
        transformers' image processor takes each image from PIL to an array and back twice, which takes longer than resizing.
        """
        own = self.image_processor
        pads_and_resizes = type(own) is LlavaImageProcessorPil and own.do_pad and own.do_resize and own.image_mean
        side = own.size.get("height")
        flat: Any = make_flat_list_of_images(images)
        fits = pads_and_resizes and not own.do_center_crop and side and side == own.size.get("width")
        if kwargs or not fits or not all(map(_is_rgb, flat)):
            return super()._process_images(images, **kwargs)
        levels = own(_RAMP, do_pad=False, do_resize=False)["pixel_values"][0][:, 0]  # [3, 256]
        pixels = np.empty((len(flat), 3, side, side), levels.dtype)
        for image, values in zip(flat, pixels, strict=True):
            channels = np.asarray(self._square(image, side)).transpose(2, 0, 1)
            for level, channel, looked_up in zip(levels, channels, values, strict=True):
                np.take(level, channel, out=looked_up, mode="clip")  # nothing to clip, but other modes copy first
        placeholders = [self.replace_image_token({"pixel_values": pixels}, index) for index in range(len(flat))]
        return BatchFeature({"pixel_values": pixels}), placeholders

    def _square(self, image: Image.Image, side: int) -> Image.Image:
        """The image padded with the mean colour and resized."""
        width, height = image.size
        longest, resample = max(width, height), self.image_processor.resample
        if width > height:
            # PIL resizes horizontally first, which leaves rows of padding as they are: they are cheaper to add afterwards.
            image = image.resize((side, height), resample)
        if width != height:
            size = (side if width > height else longest, longest)
            square = Image.new("RGB", size, tuple(int(255 * value) for value in self.image_processor.image_mean))
            square.paste(image, ((size[0] - image.width) // 2, (longest - height) // 2))
            image = square
        return image.resize((side, side), resample)

    # ------------------------------------------------------------------ image placeholders

    def _placeholders(self, height: int, width: int) -> int:
        prefix = self.num_additional_image_tokens if self.vision_feature_select_strategy == "full" else 0
        return (height // self.patch_size) * (width // self.patch_size) + prefix

    @property
    def num_image_tokens(self) -> int:
        """Placeholders per image."""
        size = self.image_processor.crop_size if self.image_processor.do_center_crop else self.image_processor.size
        return self._placeholders(size["height"], size["width"])

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        return self.image_token * self._placeholders(*image_inputs["pixel_values"][image_idx].shape[-2:])

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """Placeholders for images of the given (height, width): all the same, since images are padded to squares."""
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.num_image_tokens] * len(image_sizes), num_image_patches=[1] * len(image_sizes)
        )

    def validate_inputs(self, images=None, text=None, **kwargs):  # type: ignore[override]
        """Refuses image tokens and images that differ in number, naming the sample where it is known."""
        samples = [text] if isinstance(text, str) else text or []
        if text is not None and all(isinstance(sample, str) for sample in samples):
            tokens = [sample.count(self.image_token) for sample in samples]
            advice = f"Put one {self.image_token} into the text (or one image part into the message) for each image."
            flat: Any = make_flat_list_of_images(images) if images is not None else []
            groups = images if isinstance(images, list | tuple) else [] if images is None else [images]
            if any(isinstance(group, list | tuple) for group in groups) and len(groups) == len(samples):
                given = [len(group) if isinstance(group, list | tuple) else 1 for group in groups]
                for index, (wanted, found) in enumerate(zip(tokens, given, strict=True)):
                    if wanted != found:
                        raise ValueError(
                            f"Sample {index} has {wanted} {self.image_token} token(s) but {found} image(s). {advice}"
                        )
            elif sum(tokens) != (found := len(flat)):
                raise ValueError(
                    f"There are {sum(tokens)} {self.image_token} token(s) in the text but {found} image(s). {advice}"
                )
        super().validate_inputs(images=images, text=text, **kwargs)

    # ------------------------------------------------------------------ instruction formats

    def build_instruction(
        self, task: str, question: str, language: str, *, answer_language: str | None = None, row_id: str = ""
    ) -> str:
        """
        The user's text in one of LRM-LLaVA's formats: "mvqa", "ep_vqa" (English as pivot) or "bvqa" (the answer in
        another language). See `instructions_parrot.build_instruction`; `parse_pivot` reads the answer of "ep_vqa".
        """
        return build_instruction(
            task, question, language, self._wording(), answer_language=answer_language, row_id=row_id
        )

    def build_row(self, task: str, row: dict, language: str, *, answer_language: str | None = None) -> dict:
        """A training row in one of LRM-LLaVA's formats from a parallel one. See `instructions_parrot.build_row`."""
        return build_row(task, row, language, self._wording(), answer_language=answer_language)

    @staticmethod
    def parse_pivot(text: str) -> tuple[str | None, str]:
        """English question (None if the model wrote none) and answer of an "ep_vqa" answer."""
        return parse_pivot(text)

    def _wording(self) -> Instructions:
        if not self.instructions:
            raise ValueError(
                "This checkpoint's processor has no instructions: it was saved before they existed. Set "
                "`processor.instructions`, for example to those of another checkpoint."
            )
        return self.instructions

    # ------------------------------------------------------------------ calls

    def __call__(self, images=None, text=None, *, routing_text=None, routing_turns=None, **kwargs) -> BatchFeature:
        """
        Args:
            images: an image, a list of images, or one list of images per sample (PIL, array, tensor, path, URL).
            text: a prompt or a list of prompts with `<image>` where images go; plain, or rendered by the chat
                template (also a whole conversation: its answers stay out of the routing rows).
            routing_text (`str` or `list[str]`, *optional*): the text that guides the experts, for all images or one
                per image, instead of the prompt's own. To study routing.
            routing_turns: for `apply_chat_template`; the turns of each prompt, where they are known exactly.
            kwargs: of the tokenizer and the image processor, e.g. `padding=True, return_tensors="pt"`.

        Returns:
            `BatchFeature`, see the class.

        Raises:
            ValueError: image tokens and images differ in number, or truncation would cut an image.
        """
        wanted = {**kwargs, **kwargs.get("text_kwargs", {})}
        kwargs.setdefault("return_mm_token_type_ids", True)
        text = [text] if isinstance(text, str) else text
        bos = getattr(self.tokenizer, "bos_token", None)
        if text and bos and all(isinstance(sample, str) and sample.startswith(bos) for sample in text):
            # The template has written it; the tokenizer would write it twice.
            kwargs.setdefault("add_special_tokens", False)
        has_images = images is not None and self.image_token in "".join(text or ())
        routed = self.routing_scope is not None and has_images
        tensors = None
        if routed:
            kwargs.update(return_offsets_mapping=True, return_text_replacement_offsets=True)
            # Tensors come last: made by the tokenizer, those of the offsets alone took longer than all other tokens' work.
            tensors = kwargs.pop("return_tensors", None)
        encoded = super().__call__(images=images, text=text, **kwargs)
        if not routed:
            return encoded

        prompts = [sample for sample in text if isinstance(sample, str)]
        if routing_text is None and wanted.get("return_text_replacement_offsets"):
            self._check_prompts_of_engine(prompts)
        if routing_text is None:
            rows = self._routing_rows(prompts, encoded, routing_turns)
        else:
            count = sum(sample.count(self.image_token) for sample in prompts)
            texts = [routing_text] * count if isinstance(routing_text, str) else list(routing_text)
            if len(texts) != count:
                raise ValueError(
                    f"`routing_text` has {len(texts)} texts, but there are {count} images: one per image."
                )
            rows = [self.tokenizer(sample, add_special_tokens=False)["input_ids"] for sample in texts]
        kept = encoded.pop("text_replacement_offsets", None)
        if not wanted.get("return_offsets_mapping"):
            encoded.pop("offset_mapping", None)
        encoded.update(self._pad_rows(rows, None if tensors else wanted.get("return_tensors")))
        if tensors:
            encoded = BatchFeature(encoded.data, tensor_type=tensors)
        if wanted.get("return_text_replacement_offsets"):
            encoded["text_replacement_offsets"] = kept
        return encoded

    def apply_chat_template(self, conversation, chat_template=None, tools=None, documents=None, **kwargs):  # type: ignore[override]
        """
        As `ProcessorMixin.apply_chat_template`. The turns are taken from the messages themselves, so that markup a
        user typed neither starts nor ends a turn in the routing rows.
        """
        kwargs = {"chat_template": chat_template, "tools": tools, "documents": documents, **kwargs}
        if self.routing_scope is None:
            return super().apply_chat_template(conversation, **kwargs)
        turns = self._turns_of_messages(conversation, kwargs)
        if kwargs.get("tokenize"):
            kwargs["processor_kwargs"] = {"routing_turns": turns, **(kwargs.get("processor_kwargs") or {})}
            return super().apply_chat_template(conversation, **kwargs)
        rendered = super().apply_chat_template(conversation, **kwargs)
        if turns is None:
            return rendered
        prompts = [RenderedPrompt(text) for text in ([rendered] if isinstance(rendered, str) else rendered)]
        for prompt, prompt_turns in zip(prompts, turns, strict=True):
            prompt.turns = prompt_turns
        return prompts[0] if isinstance(rendered, str) else prompts

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "routing_input_ids", "routing_attention_mask"]

    # ------------------------------------------------------------------ routing rows

    def routing_rows(self, text: str) -> list[list[int]]:
        """
        The routing rows of a prompt whose images are not at hand (a serving engine's, say), without padding.

        Args:
            text: a prompt, plain or rendered by the chat template, with one `<image>` for each image.

        Returns:
            For each image the token ids that `routing_input_ids` would hold.
        """
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        images = [
            {"span": found.span(), "text": found.group(), "replacement": found.group()}
            for found in re.finditer(re.escape(self.image_token), text)
        ]
        batch = {name: [encoded[name]] for name in ("input_ids", "offset_mapping")}
        return self._routing_rows([text], BatchFeature({**batch, "text_replacement_offsets": [images]}), None)

    def _check_prompts_of_engine(self, prompts: list[str]) -> None:
        """Refuses placeholders without text from a caller that asks where they went: only serving engines do both."""
        if not any(prompt.replace(self.image_token, "").strip() for prompt in prompts):
            raise ValueError(
                "A serving engine shows the processor images without their question, but the question chooses this "
                "model's experts: its answers would be wrong. With vLLM, install modeling-parrot beside it, whose plugin "
                "hands the question over, and do not set `--model-impl`. Elsewhere pass `routing_text`."
            )

    def _routing_rows(self, prompts: list[str], encoded: BatchFeature, known_turns) -> list[list[int]]:
        """One list of token ids per image, cut out of the encoded prompts by character spans."""
        rows = []
        for index, prompt in enumerate(prompts):
            replacements = encoded["text_replacement_offsets"][index]
            if not replacements:
                continue
            turns = known_turns[index] if known_turns else getattr(prompt, "turns", None)
            turns = turns or turns_of_text(prompt, self._markers_of(None))
            ids, offsets = encoded["input_ids"][index], encoded["offset_mapping"][index]
            ids, offsets = (value.tolist() if hasattr(value, "tolist") else value for value in (ids, offsets))
            # Offsets are those of the prompt with expanded placeholders; spans are moved there.
            questions = [(turn.user, _moved(self._stripped(turn.user, prompt), replacements)) for turn in turns]
            answers = [_moved(turn.answer, replacements) for turn in turns if turn.answer]
            expanded_prompt = _expanded(prompt, replacements)
            for image in replacements:
                if self.routing_scope == "prompt":
                    kept: tuple[float, float] = (0, float("inf"))
                else:
                    at = image["span"][0]
                    kept = next((question for (begin, end), question in questions if begin <= at < end), (0, 0))
                row: list[int] = []
                for token, span in zip(ids, offsets, strict=True):
                    if token == self.image_token_id or not _overlap(span, kept):
                        continue
                    answer = next((answer for answer in answers if _overlap(span, answer)), None)
                    if answer is None:
                        row.append(token)
                    elif span[0] < answer[0]:
                        # A token that reaches into the answer: keep what it would be without it.
                        before = expanded_prompt[span[0] : answer[0]]
                        row += self.tokenizer(before, add_special_tokens=False)["input_ids"]
                rows.append(row)
        return rows

    def _stripped(self, span: tuple[int, int], prompt: str) -> tuple[int, int]:
        """The span without the white space and image placeholders at its ends."""
        blank = rf"(?:\s|{re.escape(self.image_token)})*"
        text = prompt[slice(*span)]
        start = re.match(blank, text).end()  # type: ignore[union-attr]
        end = len(re.sub(f"{blank}$", "", text[start:])) + start
        return span[0] + start, span[0] + end

    def _pad_rows(self, rows: list[list[int]], return_tensors) -> BatchFeature:
        length = max(1, *map(len, rows)) if rows else 1
        pad = self.tokenizer.pad_token_id or 0
        return BatchFeature(
            {
                "routing_input_ids": [row + [pad] * (length - len(row)) for row in rows],
                "routing_attention_mask": [[1] * len(row) + [0] * (length - len(row)) for row in rows],
            },
            tensor_type=return_tensors,
        )

    def _template(self, chat_template: str | None) -> str | None:
        """The Jinja text of a template given by name or text, or of the processor's own."""
        if isinstance(self.chat_template, dict):
            return self.chat_template.get(chat_template or "default", chat_template)
        return chat_template or self.chat_template

    def _markers_of(self, chat_template: str | None) -> Markers | None:
        """The template's markers, or None where a sentinel conversation does not show them."""
        template = self._template(chat_template)
        if template is None:
            return None
        if template not in self._markers:
            render = super().apply_chat_template
            self._markers[template] = find_markers(lambda chat, **options: render(chat, template, **options))
        return self._markers[template]

    def _turns_of_messages(self, conversation, options: dict[str, Any]) -> list[list[Turn]] | None:
        """Turns of each conversation as `apply_chat_template` will render it, or None where markers must decide."""
        is_batch = len(conversation) > 0 and isinstance(conversation[0], list | tuple)
        conversations = conversation if is_batch else [conversation]
        markers = self._markers_of(options["chat_template"])
        if markers is None:
            return None
        template = self._template(options["chat_template"]) or ""
        shaping = {
            name: value
            for name, value in options.items()
            if name in _RENDER_OPTIONS or (name not in _OTHER_OPTIONS and re.search(rf"\b{name}\b", template))
        }
        render = super().apply_chat_template
        turns = [turns_of_messages(chat, markers, lambda chat: render(chat, **shaping)) for chat in conversations]
        return None if any(each is None for each in turns) else turns  # type: ignore[return-value]

    def check_training_template(self) -> None:
        """
        Refuses a chat template that training cannot use: one that does not mark the assistant's text with
        `{% generation %}`, or whose markers a sentinel conversation does not show.

        Raises:
            ValueError: what is missing, and what to do.
        """
        markers = self._markers_of(None)
        if markers is None:
            raise ValueError(
                "The processor's chat template does not show where questions and answers begin and end, so labels and "
                'routing rows cannot be told apart. Use `chat_template="chatml"` or "vicuna", or a template that '
                "writes each message's text unchanged between fixed markers."
            )
        if not has_generation_block(self._template(None) or ""):
            raise ValueError(
                "The processor's chat template has no `{% generation %}` block, so the assistant's text cannot be "
                "found for the labels. Put the assistant's text and its end marker between `{% generation %}` and "
                "`{% endgeneration %}`."
            )


def _overlap(span: tuple[int, int], other: tuple[float, float]) -> bool:
    """Whether a token's characters lie in another span, wholly or in part; padding and added tokens have none."""
    return span[0] < span[1] and span[0] < other[1] and span[1] > other[0]


def _expanded(prompt: str, replacements: list[dict[str, Any]]) -> str:
    """The prompt with its placeholders expanded."""
    pieces, last = [], 0
    for item in replacements:
        pieces += [prompt[last : item["span"][0]], item["replacement"]]
        last = item["span"][1]
    return "".join([*pieces, prompt[last:]])


def _moved(span: tuple[int, int], replacements: list[dict[str, Any]]) -> tuple[int, int]:
    """A character span of the prompt, in the prompt with expanded placeholders."""

    def move(position: int) -> int:
        before = [item for item in replacements if item["span"][1] <= position]
        return position + sum(len(item["replacement"]) - len(item["text"]) for item in before)

    return move(span[0]), move(span[1])


_RAMP = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2))  # every level once


def square_image_processor(original, image_size: int) -> LlavaImageProcessorPil:
    """
    An image processor that pads to a square with the mean colour and resizes to `image_size` pixels, with the
    original's mean, standard deviation, scale and interpolation.

    It is the PIL version on purpose: torchvision's interpolation differs in the last digits, and checkpoints should
    see the same pixels wherever they run.
    """
    side = {"height": image_size, "width": image_size}
    return LlavaImageProcessorPil(
        do_pad=True,
        do_resize=True,
        size=side,
        do_center_crop=False,
        crop_size=side,
        resample=original.resample,
        rescale_factor=original.rescale_factor,
        image_mean=original.image_mean,
        image_std=original.image_std,
    )


def _is_rgb(image) -> bool:
    return isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info


def _num_prefix_tokens(vision_config) -> int:
    """Tokens a tower puts before its patches, counted on a tower without weights."""
    import torch
    from transformers import MODEL_MAPPING

    tower_class: Any = MODEL_MAPPING[type(vision_config)]  # AutoModel would partition the tower under ZeRO-3
    with torch.device("meta"):
        tower = tower_class(vision_config)
        size = vision_config.image_size
        positions = tower(torch.zeros(1, 3, size, size)).last_hidden_state.shape[1]
    return positions - (size // vision_config.patch_size) ** 2


__all__ = ["CHAT_TEMPLATES", "IMAGE_TOKEN", "ParrotProcessor"]
