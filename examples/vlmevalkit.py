"""
Measures a model with VLMEvalKit, the harness of PARROT's paper.

    python examples/vlmevalkit.py --kit FOLDER --model DIR_OR_ID --data MMMB_en MMMB_tr --judge exact_matching

FOLDER is a checkout of VLMEvalKit whose requirements are installed; further arguments are those of its `run.py`. A TSV file
of one's own goes into the folder that the environment variable LMUData names, and is called by its name without `.tsv`. The
kit's prompts and its reading of answers are English; `evaluate.py` scores the same files in their own languages.
"""

import argparse
import runpy
import sys
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import modeling_parrot  # noqa: F401 (registers Parrot's classes)
from parrot_eval.generation import Asker, Request


def adapter(base: type) -> type:
    """The kit's model class for Parrot; `base` is its `BaseModel`."""

    class Parrot(base):  # type: ignore[misc, valid-type]
        INTERLEAVE = False

        def __init__(self, pretrained: str, max_new_tokens: int, trust_remote_code: bool = False):
            super().__init__()
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
            self.asker = Asker.from_pretrained(
                pretrained, device, max_new_tokens=max_new_tokens, trust_remote_code=trust_remote_code
            )

        def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
            """The answer to one question, given as parts of type "image" (a file) and "text"."""
            images = [Image.open(part["value"]).convert("RGB") for part in message if part["type"] == "image"]
            text = "\n".join(part["value"] for part in message if part["type"] == "text")
            return self.asker.answers([Request(text, images)])[0]

    return Parrot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, required=True, help="checkout of VLMEvalKit")
    parser.add_argument("--model", required=True, help="folder of a checkpoint, or id on the Hub")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files inside the checkpoint, not the package's",
    )
    args, others = parser.parse_known_args()
    run = args.kit / "run.py"
    if not run.is_file():
        parser.error(f"{args.kit} is no checkout of VLMEvalKit: it has no run.py")
    sys.path.insert(0, str(args.kit))
    from vlmeval.config import supported_VLM
    from vlmeval.vlm.base import BaseModel

    name = Path(args.model).name
    supported_VLM[name] = partial(adapter(BaseModel), args.model, args.max_new_tokens, args.trust_remote_code)
    sys.argv = [str(run), "--model", name, *others]
    runpy.run_path(str(run), run_name="__main__")


if __name__ == "__main__":
    main()
