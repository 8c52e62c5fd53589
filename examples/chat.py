"""
Chats about images in the terminal.

    python examples/chat.py --model DIR_OR_ID --image cat.png
    python examples/chat.py --model DIR_OR_ID --image a.png --image b.png --question "图中有什么不同？"
    printf 'What is this?\nما لونه؟\n' | python examples/chat.py --model DIR_OR_ID --image cat.png

While chatting: /image FILE adds an image to the next question, /reset starts again with the images of the command
line, /help lists the commands, /quit (or the end of the input) ends. Ctrl-C stops an answer. A question that begins
with a slash is sent when a space comes before it.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer


with contextlib.suppress(ImportError):  # Windows has none
    import readline  # noqa: F401 (line editing and history for `input`)


COMMANDS = """\
/image FILE   add an image to the next question
/reset        forget the conversation; the images of the command line stay
/help         this list
/quit         end"""


class ChatError(Exception):
    """Something the user can put right; the message says how."""


def open_image(path: str) -> Image.Image:
    """
    A whole, upright RGB image.

    Raises:
        ChatError: the file is missing, empty, no image, or damaged.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ChatError(f"{path} is not a file. Give the path of an image.")
    if file.stat().st_size == 0:
        raise ChatError(f"{path} is empty (0 bytes). Give another image.")
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ChatError(f"{path} is not an image that Pillow can read.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        raise ChatError(f"{path} cannot be decoded, it may be truncated: {error}") from error


class AnswerStreamer(TextStreamer):
    """Prints an answer word by word and keeps it, so that one stopped half-way stays in the conversation."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.answer = ""

    def on_finalized_text(self, text: str, stream_end: bool = False):
        self.answer += text
        super().on_finalized_text(text, stream_end)


class Chat:
    """
    A conversation with a model about any number of images.

    Args:
        model, processor: of any checkpoint for images and text.
        images: added to the first question, also after `reset`.
        system: an optional system message.
        generation: arguments of `generate`; `max_new_tokens` among them.
    """

    def __init__(self, model, processor, images: list[Image.Image], system: str | None, generation: dict[str, Any]):
        self.model, self.processor = model, processor
        self.first_images, self.system, self.generation = images, system, generation
        self.reset()

    def reset(self) -> None:
        """Forgets everything that was said, and images added since."""
        self.messages: list[dict[str, Any]] = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": [{"type": "text", "text": self.system}]})
        self.pending = list(self.first_images)

    def ask(self, question: str) -> str:
        """
        Prints the answer to a question as it comes, and returns it.

        Raises:
            ChatError: question and answer do not fit into the model's context, or the processor refuses them. The
                conversation is as it was before.
        """
        parts = [*({"type": "image", "image": image} for image in self.pending), {"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": parts}]
        # The whole conversation is encoded anew at each turn: simple, and right for every checkpoint.
        try:
            inputs = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except (ValueError, TemplateError) as error:
            raise ChatError(str(error)) from error
        self._check_length(inputs["input_ids"].shape[1])
        streamer = AnswerStreamer(getattr(self.processor, "tokenizer", self.processor))
        try:
            self.model.generate(**inputs.to(self.model.device, self.model.dtype), streamer=streamer, **self.generation)
        except KeyboardInterrupt:
            streamer.end()
        answer = streamer.answer.strip()
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.pending = []
        return answer

    def _check_length(self, length: int) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        wanted = self.generation["max_new_tokens"]
        if limit is not None and length + wanted > limit:
            raise ChatError(
                f"The conversation has {length} tokens, images included, and with an answer of up to {wanted} it would "
                f"exceed the model's {limit}. Type /reset, or start with a smaller --max-new-tokens."
            )

    def obey(self, command: str) -> bool:
        """
        Carries out a command; False means that the chat ends.

        Raises:
            ChatError: an unknown command, or an image that cannot be read.
        """
        name, _, argument = command.partition(" ")
        argument = argument.strip().strip("\"'")
        if name == "/quit":
            return False
        if name == "/help":
            print(COMMANDS)
        elif name == "/reset":
            self.reset()
        elif name == "/image" and argument:
            self.pending.append(open_image(argument))
        elif name == "/image":
            raise ChatError("/image needs a file, e.g. /image cat.png")
        else:
            raise ChatError(
                f"There is no command {name}; /help lists them. To send it as text, put a space before it."
            )
        return True


def load(name: str, device: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """
    A checkpoint's model, in eval mode on the device, and its processor.

    Raises:
        ChatError: it cannot be loaded.
    """
    if not trust_remote_code:
        try:
            import modeling_parrot  # noqa: F401 (registers Parrot's classes)
        except ImportError as error:
            raise ChatError(
                f"The package modeling_parrot is not installed ({error}). Install it (`pip install -e .`), or run the "
                "code inside the checkpoint with --trust-remote-code."
            ) from error
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ChatError(f"{name} cannot be loaded: {error}") from error
    return model.to(torch.device(device)).eval(), processor  # type: ignore[arg-type]


def lines() -> Iterator[str]:
    """What the user types: with a prompt in a terminal, line by line from a pipe or a file."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def converse(chat: Chat) -> int:
    """Answers until the input ends or /quit. Returns how many lines could not be answered or obeyed."""
    failures = 0
    for line in lines():
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not chat.obey(line.rstrip()):
                    break
            else:
                chat.ask(line.strip())
        except ChatError as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
    return failures


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a checkpoint's folder or Hub id")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--question", metavar="TEXT", help="print the answer to this question and end")
    parser.add_argument("--system", metavar="TEXT", help="system message instead of the chat template's own")
    parser.add_argument(
        "--device", default=default_device(), help="cpu, cuda, cuda:1, mps (default here: %(default)s)"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="default: the checkpoint's"
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token, more samples"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files inside the checkpoint, not the package's",
    )
    options = parser.parse_args(arguments)
    if options.max_new_tokens < 1:
        parser.error(f"--max-new-tokens must be at least 1, not {options.max_new_tokens}")
    if options.temperature < 0:
        parser.error(f"--temperature must be 0 or more, not {options.temperature}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status, 1 if anything could not be answered."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # every language, whatever the locale of a pipe is
            stream.reconfigure(encoding="utf-8", errors="replace")
    options = parse_arguments(arguments)
    if options.temperature > 0:
        generation = {"do_sample": True, "temperature": options.temperature}
    else:  # a checkpoint's own sampling settings would only cause warnings
        generation = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    try:
        images = [open_image(path) for path in options.image]  # before the model, which may take minutes
        model, processor = load(options.model, options.device, options.dtype, options.trust_remote_code)
        generation["max_new_tokens"] = options.max_new_tokens
        chat = Chat(model, processor, images, options.system, generation)
        if options.question is not None:
            chat.ask(options.question)
            return 0
    except ChatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if sys.stdin.isatty():
        print(f"{options.model} on {model.device} ({model.dtype}), {len(images)} image(s). /help lists the commands.")
    return 1 if converse(chat) else 0


if __name__ == "__main__":
    sys.exit(main())
