"""
A web page to try a model: an image, questions in any language, and what the router made of them.

    python examples/app.py --model DIR_OR_ID
    python examples/app.py --model DIR_OR_ID --images FOLDER     # images to pick from, beside uploading one

Answers appear as they are written. Beside each stand the weights of the language experts, if the model has any, and the
language it was answered in, where that can be told. The page is served to this machine only; `--host 0.0.0.0` serves it
to others. Needs `pip install "modeling-parrot[app]"`.
"""

import argparse
import html
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from jinja2 import TemplateError
from PIL import Image, ImageOps
from transformers import StoppingCriteriaList, TextIteratorStreamer
from transformers.utils import logging

import modeling_parrot  # noqa: F401 (registers Parrot's classes)
from parrot_data.images import load_image
from parrot_data.languages import language_of
from parrot_eval.generation import Asker
from parrot_eval.prompts import load_wording


MAX_UPLOAD = "10mb"
MAX_PIXELS = 40_000_000
MAX_QUESTION = 2000  # characters
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # whatever a file is called, no other decoder sees it
# Every paragraph takes its direction from its own first letters: Arabic runs from the right, whatever the page does.
CSS = """
#chat .message :is(p, li, td, th, h1, h2, h3, h4), #question textarea { unicode-bidi: plaintext; text-align: start; }
.router { margin: 0 0 1rem; padding: .5rem; border: 1px solid #8884; border-radius: .5rem; }
.router b { display: block; margin-bottom: .3rem; }
.router div { display: flex; align-items: center; gap: .5rem; font-size: .8rem; }
.router i { display: inline-block; height: .7rem; background: #0072B2; }
"""


class AppError(Exception):
    """Something the person at the page can put right; the message says how."""


@dataclass
class Conversation:
    """What one visitor has said and been shown."""

    image: Image.Image | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # of each answer, as HTML

    def begin(self, image: Image.Image | None) -> None:
        """Anew; an answer that is still being written finds other `messages` than it knows, and ends."""
        self.image, self.messages, self.notes = image, [], []


class Answerer:
    """
    A model that answers visitors one after the other.

    Args:
        model, processor: of any checkpoint for images and text.
        max_new_tokens: of an answer.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int):
        self.model, self.processor, self.max_new_tokens = model.eval(), processor, max_new_tokens

    def stream(self, conversation: Conversation, question: str) -> Iterator[str]:
        """
        The answer as far as it is written, again and again; at the end it is part of the conversation. It ends early
        when the conversation begins anew.

        Raises:
            AppError: no question, no image, more text than the model can take, or text that the processor refuses.
        """
        question = question.strip()
        if not question:
            raise AppError("Please write a question.")
        if len(question) > MAX_QUESTION:
            raise AppError(f"The question has {len(question):,} characters. Please use at most {MAX_QUESTION:,}.")
        if conversation.image is None:
            raise AppError("Please upload or choose an image first.")
        past = conversation.messages
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if not past:
            content = [{"type": "image", "image": conversation.image}, *content]
        messages = [*past, {"role": "user", "content": content}]
        try:
            inputs = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self.model.device, self.model.dtype)
        except (ValueError, TemplateError) as error:  # such as a question with an image token in it
            raise AppError(f"The model cannot take this question: {error}") from error
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and inputs["input_ids"].shape[1] + self.max_new_tokens > limit:
            raise AppError("This conversation has become too long for the model. Please start a new one.")
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []
        left = threading.Event()

        def stop(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((input_ids.shape[0],), left.is_set(), device=input_ids.device)

        def generate() -> None:
            try:
                self.model.generate(
                    **inputs, streamer=streamer, max_new_tokens=self.max_new_tokens, do_sample=False,
                    stopping_criteria=StoppingCriteriaList([stop]),
                )  # fmt: skip
            except BaseException as error:  # handed to the visitor's thread, which would wait for ever
                failure.append(error)
                streamer.end()

        worker = threading.Thread(target=generate, daemon=True)
        worker.start()
        answer = ""
        try:
            for piece in streamer:
                if conversation.messages is not past:
                    return
                answer += piece
                yield answer
        finally:  # also when the visitor leaves half-way: the next one gets the model to himself
            left.set()
            worker.join()
        if failure:
            raise failure[0]
        answer = answer.strip()
        note = self.note(inputs, answer, len(past) // 2 + 1)
        if conversation.messages is past:
            conversation.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            conversation.notes.append(note)

    @torch.inference_mode()
    def note(self, inputs: Any, answer: str, number: int) -> str:
        """The language of an answer and the experts' weights behind it, as HTML."""
        language = language_of(answer, sorted(load_wording())) or "cannot be told"
        bars = ""
        if getattr(self.model.config, "num_language_experts", 0):
            found = self.model.model.get_image_features(
                inputs["pixel_values"], inputs["routing_input_ids"], inputs["routing_attention_mask"], return_dict=True
            )
            by_first = number > 1 and getattr(self.model.config, "routing_scope", None) == "turn"
            bars = "<div>routed by the question that came with the image</div>" * by_first + "".join(
                f"<div>expert {expert + 1} <i style='width: {100 * weight:.0f}px'></i> {100 * weight:.0f}%</div>"
                for expert, weight in enumerate(found.router_probs[0].tolist())
            )
        return f"<div class='router'><b>Answer {number}. Language: {html.escape(language)}</b>{bars}</div>"


def open_upload(path: str) -> Image.Image:
    """
    A whole, upright RGB image.

    Raises:
        AppError: no image, damaged, or too many pixels.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as opened:  # reads the header only
            if opened.width * opened.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return ImageOps.exif_transpose(load_image(opened, "upload")).convert("RGB")
    except Image.DecompressionBombError as error:
        raise AppError(f"The image is too large. Please use at most {MAX_PIXELS // 10**6} megapixels.") from error
    except Exception as error:  # damaged files make Pillow's decoders raise errors of many kinds
        raise AppError("This file cannot be read as an image. Please use a PNG, JPEG or WebP file.") from error


def build_page(answerer: Answerer, title: str, pictures: list[Path]) -> gr.Blocks:
    """The page. Visitors choose pictures by their number; no path ever comes from them."""

    def shown(conversation: Conversation) -> tuple[Any, ...]:
        """The image, the chat and the notes."""
        chat = [{"role": turn["role"], "content": turn["content"][-1]["text"]} for turn in conversation.messages]
        return conversation.image, chat, "".join(conversation.notes)

    def upload(path: str | None, conversation: Conversation) -> tuple[Any, ...]:
        try:
            if path is not None:
                conversation.begin(open_upload(path))
        except AppError as error:
            gr.Warning(html.escape(str(error), quote=False))
        return shown(conversation)

    def choose(conversation: Conversation, event: gr.SelectData) -> tuple[Any, ...]:
        return upload(str(pictures[event.index]), conversation)

    def restart(conversation: Conversation) -> tuple[Any, ...]:
        conversation.begin(conversation.image)
        return shown(conversation)

    def ask(question: str, conversation: Conversation) -> Iterator[tuple[Any, ...]]:
        _, before, notes = shown(conversation)
        typed: Any = ""
        try:
            for answer in answerer.stream(conversation, question):
                turn = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                yield typed, before + turn, notes
                typed = gr.skip()  # the next question may be typed while this one is answered
        except AppError as error:
            gr.Warning(html.escape(str(error), quote=False))
            typed = question
        except Exception as error:
            raise gr.Error("The model failed at this question. Please ask another, or start a new one.") from error
        yield typed, *shown(conversation)[1:]  # of a new conversation, if one has begun meanwhile

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        conversation = gr.State(Conversation())
        gr.Markdown(f"# {title}\nUpload an image, and ask about it in any language.")
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label="Image file", file_types=list(IMAGE_TYPES), type="filepath", elem_id="upload")
                image = gr.Image(label="Image", interactive=False, height=260, elem_id="image", buttons=[])
                gallery = gr.Gallery(
                    [str(path) for path in pictures], label="Or choose one", columns=2, height=240, allow_preview=False,
                    visible=bool(pictures), elem_id="gallery", buttons=[],
                )  # fmt: skip
            with gr.Column(scale=2):
                chat = gr.Chatbot(label="Conversation", height=420, elem_id="chat", buttons=[])
                question = gr.Textbox(
                    label="Question", placeholder="What is in the picture?", max_length=MAX_QUESTION, submit_btn="Ask",
                    elem_id="question",
                )  # fmt: skip
                again = gr.Button("Start a new conversation")
            with gr.Column(scale=1):
                gr.Markdown("**The router, beside each answer**")
                notes = gr.HTML(elem_id="router")
        everything = [image, chat, notes]
        file.upload(upload, [file, conversation], everything)
        gallery.select(choose, conversation, everything)
        question.submit(ask, [question, conversation], [question, chat, notes])
        again.click(restart, conversation, everything)
        chat.clear(restart, conversation, everything)
    return page.queue(default_concurrency_limit=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a checkpoint, or id on the Hub")
    parser.add_argument("--images", type=Path, help="folder with images to choose from")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines too")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files inside the checkpoint, not the package's",
    )
    args = parser.parse_args()
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asker = Asker.from_pretrained(args.model, device, trust_remote_code=args.trust_remote_code)
    answerer = Answerer(asker.model, asker.processor, args.max_new_tokens)
    pictures = (
        sorted(path for path in args.images.iterdir() if path.suffix.lower() in IMAGE_TYPES) if args.images else []
    )
    page = build_page(answerer, Path(args.model).name, pictures)
    page.launch(
        server_name=args.host, server_port=args.port, max_file_size=MAX_UPLOAD, css=CSS, footer_links=[],
        allowed_paths=[str(path) for path in pictures],
    )  # fmt: skip


if __name__ == "__main__":
    main()
