"""
Compares Parrot with transformers' LLaVA and with PARROT's published algorithm: time, memory, and what bounds them.

    python examples/benchmark.py --output outputs/benchmark                    # the shapes that fit this machine
    python examples/benchmark.py --output outputs/benchmark --shapes tiny      # some minutes, to see that it runs
    python examples/benchmark.py --output outputs/benchmark --only stage1 stage2 --shapes small --vocabulary 152000

All sides of a comparison have the same tower, language model, batch, dtype and attention, random weights, and run by turns in
one process, so that a busy machine slows them alike: read the ratios. Peak memory is of a process of its own per side on a
CPU, of the allocator on a GPU; the adapter's is what its forward pass keeps for the backward pass. `growth` shows how a
training step grows with one size at a time. Written: `benchmark.json` (every run), `benchmark.md` (tables), `growth.png`; what
the folder has from this machine and these settings stays, so that parts can be measured one by one.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from benchmark_models import SHAPES, SIDES, PublishedExperts, Shape, batch, build, freeze
from benchmark_report import draw_growth, figures, tables
from torch.utils.flop_counter import FlopCounterMode


STAGES = {"stage1": "alignment", "stage2": "instruction"}
PARTS = ("stage1", "stage2", "first_token", "decoding", "adapter", "top_k", "data", "growth")
# What a training step is watched growing with; the other sizes stay as they are.
GROWTH: dict[str, tuple[int, ...]] = {
    "rows of the batch": (2, 4, 8, 16),
    "images per row": (1, 2, 3, 4),
    "text tokens per row": (128, 256, 512, 1024),
    "experts, all active": (1, 2, 4, 8, 16),
    "active experts of 8": (1, 2, 4, 8),
}
H100_BF16 = 989e12  # FLOP/s without sparsity


# ------------------------------------------------------------------------------------------------ measuring


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds of one run."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def by_turns(
    works: Mapping[str, Callable[[], Any]], device: str, repeats: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """{name: seconds of each run}; one run of each in every round, in changing order."""
    for work in works.values():
        for _ in range(warm_up):
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(repeats):
        for name in names if number % 2 == 0 else reversed(names):
            times[name].append(timed(works[name], device))
    return times


def flops_of(work: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops()


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """The machine's FLOP/s: an H100's from its data sheet, another's as a large matrix product reaches it."""
    if device == "cuda" and "H100" in torch.cuda.get_device_name() and dtype == torch.bfloat16:
        return H100_BF16
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    times = by_turns({"product": lambda: a @ b}, device, 5)["product"]
    return 2 * size**3 / min(times)


# ------------------------------------------------------------------------------------------------ what is measured


def training_step(model: Any, inputs: dict[str, Any]) -> Callable[[], None]:
    """Forward, backward and AdamW's step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def train(part: str, side: str, shape: Shape, args: argparse.Namespace, images: int = 1) -> Callable[[], None]:
    model = build(side, shape, args.dtype, args.device, experts=part == "stage2")
    freeze(model, STAGES[part])
    return training_step(model, batch(shape, args.batch_size, args.dtype, args.device, side, images=images))


def measure_training(part: str, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    steps = {side: train(part, side, shape, args) for side in args.sides}
    result: dict[str, Any] = {"compared": (args.sides[0], args.sides[-1] if "llava" not in args.sides else "llava")}
    result["flops"] = {side: flops_of(step) for side, step in steps.items()}
    result["seconds"] = by_turns(steps, args.device, args.repeats)
    steps.clear()
    result["memory"] = {side: peak_memory({"part": part, "side": side}, shape, args) for side in args.sides}
    return result


def measure_growth(axis: str, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Stage 2's step of Parrot alone at several values of one size, by turns."""
    steps, memory = {}, {}
    for value in GROWTH[axis]:
        rows, images, grown = 4, 1, shape
        if axis.startswith("rows"):
            rows = value
        elif axis.startswith("images"):
            images = value
        elif axis.startswith("text"):
            grown = replace(shape, text=value)
        elif axis.startswith("experts"):
            grown = replace(shape, experts=value)
        else:
            grown = replace(shape, experts=8, active=value)
        own = argparse.Namespace(**{**vars(args), "batch_size": rows})
        steps[str(value)] = train("stage2", "parrot", grown, own, images)
        memory[str(value)] = peak_memory({"part": "stage2", "side": "parrot", "images": images}, grown, own)
    seconds = by_turns(steps, args.device, args.repeats)
    return {"compared": (str(GROWTH[axis][-1]), str(GROWTH[axis][0])), "seconds": seconds, "memory": memory}


def child_arguments(args: argparse.Namespace) -> dict[str, Any]:
    return {"batch_size": args.batch_size, "dtype": str(args.dtype).removeprefix("torch."), "device": args.device}


def peak_memory(job: dict[str, Any], shape: Shape, args: argparse.Namespace) -> int:
    """Bytes: of a new process that builds the side and runs three steps; of the allocator on a GPU."""
    content = json.dumps({**job, "shape": asdict(shape), **child_arguments(args)})
    done = subprocess.run(
        [sys.executable, __file__, "--child", content], capture_output=True, text=True, env=os.environ, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: measuring memory of {job} failed:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def child(content: str) -> None:
    job = json.loads(content)
    args = argparse.Namespace(batch_size=job["batch_size"], dtype=getattr(torch, job["dtype"]), device=job["device"])
    shape = Shape(**job["shape"])
    work = train(job["part"], job["side"], shape, args, job.get("images", 1))
    for _ in range(3):
        work()
    print(torch.cuda.max_memory_allocated() if args.device == "cuda" else most_resident())


def most_resident() -> int:
    """Bytes of this process in memory, at most so far (`ru_maxrss` would include the parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def saved_bytes(work: Callable[[], Any], known: Sequence[torch.Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the tensors that are there anyway."""
    own = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()  # holds what was kept, so that no address is used twice
    del result
    return sum(kept.values())


def adapter(
    side: str, shape: Shape, args: argparse.Namespace
) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    """The experts' forward pass, and what it starts from: input and parameters, all with gradients."""
    model = build("parrot", replace(shape, layers=1, tower_layers=1, vocabulary=1000), args.dtype, args.device)
    experts = model.model.language_experts if side == "parrot" else PublishedExperts(model.config)
    experts = experts.to(args.device, args.dtype)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(std=0.02)
    tokens, rows = shape.image_tokens, args.batch_size
    features = torch.randn(rows, tokens, shape.width, dtype=args.dtype, device=args.device, requires_grad=True)
    text = torch.randn(rows, 32, shape.width, dtype=args.dtype, device=args.device)
    mask = torch.ones(rows, 32, dtype=torch.long, device=args.device)

    def forward() -> torch.Tensor:
        return experts(features, experts.select(experts.route(experts.guide(features[:, 0], text, mask))))

    return forward, [features, *experts.parameters()]


def measure_adapter(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Experts forward and backward; their memory is that of the activations kept in between."""
    steps, memory = {}, {}
    for side in ("parrot", "published"):
        forward, leaves = adapter(side, shape, args)

        def step(forward: Any = forward, leaves: list[torch.Tensor] = leaves) -> None:
            forward().sum().backward()
            for leaf in leaves:
                leaf.grad = None

        steps[side], memory[side] = step, saved_bytes(forward, leaves)
    return {
        "compared": ("parrot", "published"),
        "seconds": by_turns(steps, args.device, args.repeats),
        "memory": memory,
        "flops": {side: flops_of(step) for side, step in steps.items()},
    }


def measure_top_k(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Experts' forward pass: one of 48 against all of 6, of equal width."""
    works = {}
    for name, values in {"1 of 48": {"experts": 48, "active": 1}, "6 of 6": {"experts": 6}}.items():
        small = replace(shape, layers=1, tower_layers=1, vocabulary=1000, **values)
        experts = build("parrot", small, args.dtype, args.device).model.language_experts.eval()
        with torch.no_grad():
            experts.router.weight.normal_()
        features = torch.randn(args.batch_size, shape.image_tokens, shape.width, dtype=args.dtype, device=args.device)

        def work(experts: Any = experts, features: torch.Tensor = features) -> None:
            with torch.inference_mode():
                experts(features, experts.select(experts.route(features[:, 0])))

        works[name] = work
    return {"compared": ("1 of 48", "6 of 6"), "seconds": by_turns(works, args.device, args.repeats)}


def measure_first_token(shape: Shape, args: argparse.Namespace, rows: int) -> dict[str, Any]:
    """Seconds from encoded inputs to the first new token, image included."""
    works = {}
    for side in ("parrot", "llava"):
        model = build(side, shape, args.dtype, args.device).eval()
        inputs = batch(shape, rows, args.dtype, args.device, side)
        del inputs["labels"]

        def work(model: Any = model, inputs: dict[str, Any] = inputs) -> None:
            model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False)

        works[side] = work
    return {
        "compared": ("parrot", "llava"),
        "seconds": by_turns(works, args.device, args.repeats),
        "flops": {side: flops_of(work) for side, work in works.items()},
    }


def measure_decoding(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each of 64 further tokens: a generation of 65 less one of 1."""
    works = {}
    for side in ("parrot", "llava"):
        model = build(side, shape, args.dtype, args.device).eval()
        inputs = batch(shape, 1, args.dtype, args.device, side)
        del inputs["labels"]
        for count in (1, 65):

            def work(model: Any = model, inputs: dict[str, Any] = inputs, count: int = count) -> None:
                model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)

            works[f"{side} {count}"] = work
    times = by_turns(works, args.device, args.repeats)
    seconds = {
        side: [(long - short) / 64 for long, short in zip(times[f"{side} 65"], times[f"{side} 1"], strict=True)]
        for side in ("parrot", "llava")
    }
    return {"compared": ("parrot", "llava"), "seconds": seconds}


def processors(size: int) -> tuple[Any, Any]:
    """Parrot's and LLaVA's processor with one tokenizer and one image processor between them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

    from processing_parrot import CHAT_TEMPLATES, ParrotProcessor, square_image_processor

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<image>"]})
    images = square_image_processor(CLIPImageProcessorPil(), size)
    template = CHAT_TEMPLATES["chatml"]
    ours = ParrotProcessor(images, tokenizer, patch_size=14, chat_template=template)
    llava = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="full", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    return ours, llava


def photographs(count: int) -> list[bytes]:
    """JPEG files of 640 x 480 pixels, smooth and noisy in parts as photographs are."""
    import io

    from PIL import Image

    files = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, 12, 16, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(coarse, size=(480, 640), mode="bicubic")[0]
        noisy = smooth + 12 * torch.randn(3, 480, 640, generator=generator)
        pixels = noisy.clamp(0, 255).byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def measure_data(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """From JPEG to a collated batch at 336 pixels on one core, beside decoding alone; a processor call beside LLaVA's."""
    from parrot_data.collator import ParrotDataCollator
    from parrot_data.images import load_image

    torch.set_num_threads(1)
    ours, llava = processors(336)
    collator = ParrotDataCollator(ours)
    files = photographs(16)
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is on the table?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cup of coffee and a book."}]}

    def rows() -> None:
        collator([
            {"id": str(n), "messages": [question, answer], "images": [load_image({"bytes": file}, str(n))]}
            for n, file in enumerate(files)
        ])  # fmt: skip

    image = load_image({"bytes": files[0]}, "0")
    content = [{"type": "image", "image": image}, question["content"][1]]
    chat = [{"role": "user", "content": content}]

    def call(processor: Any) -> Callable[[], Any]:
        return lambda: processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    works = {"to batch": rows, "decoding": lambda: [load_image({"bytes": file}, "0") for file in files]}
    seconds = by_turns(works, "cpu", args.repeats)
    calls = by_turns({"parrot": call(ours), "llava": call(llava)}, "cpu", 5 * args.repeats)
    torch.set_num_threads(args.threads)
    rate = len(files) / median(seconds["to batch"])
    return {
        "data path": {"compared": ("to batch", "decoding"), "seconds": seconds, "images_per_second": rate},
        "processor call": {"compared": ("parrot", "llava"), "seconds": calls},
    }


# ------------------------------------------------------------------------------------------------ running and reporting


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="by default small on a CPU, 0.5b and 7b on a GPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="of training steps")
    parser.add_argument("--vocabulary", nargs="+", type=int, help="sizes to try instead of the shape's own")
    parser.add_argument(
        "--expert-width", nargs="+", type=int, help="sizes to try in stage 2 instead of the shape's own"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", help="float32 (by default on a CPU), bfloat16 (on a GPU), float16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.dtype = getattr(torch, args.dtype or ("bfloat16" if args.device == "cuda" else "float32"))
    args.shapes = args.shapes or (["0.5b", "7b"] if args.device == "cuda" else ["small"])
    return args


def measure(args: argparse.Namespace, results: dict[str, Any], save: Callable[[], None]) -> None:
    """Puts everything asked for into `results`, {name: result}; printed and saved as it comes."""

    def add(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        save()
        shown = {key: f"{value:.3f}" for key, value in figures(result).items()}
        print(f"{name}: {result['compared'][0]} against {result['compared'][1]}: {shown}", flush=True)

    for name in args.shapes:
        for vocabulary in args.vocabulary or [SHAPES[name].vocabulary]:
            shape = replace(SHAPES[name], vocabulary=vocabulary)
            title = f"{name}, vocabulary {vocabulary // 1000}k"
            if "stage1" in args.only:
                add(f"stage1, {title}", measure_training("stage1", shape, args))
            for width in args.expert_width or [shape.expert_width] if "stage2" in args.only else ():
                wide = replace(shape, expert_width=width)
                add(f"stage2, {title}, experts {width}", measure_training("stage2", wide, args))
        shape = SHAPES[name]
        if "first_token" in args.only:
            for rows in (1, 16):
                add(
                    f"time to first token, {name}, batch {rows}",
                    measure_first_token(replace(shape, text=64), args, rows),
                )
        if "decoding" in args.only:
            add(f"decoding, {name}", measure_decoding(shape, args))
    wide = replace(SHAPES["small"], width=4096 if args.device == "cuda" else 1024, heads=8, expert_width=1024)
    if "adapter" in args.only:
        add("adapter, forward and backward", measure_adapter(wide, args))
    if "top_k" in args.only:
        add("top-1 of 48 against all of 6", measure_top_k(replace(wide, expert_width=512), args))
    if "growth" in args.only:
        # Two layers of everything: what grows is the same, and there is a point every few seconds on a CPU.
        short = replace(SHAPES[args.shapes[0]], layers=2, tower_layers=2)
        for axis in GROWTH:
            add(f"growth with {axis}", measure_growth(axis, short, args))
    if "data" in args.only:
        for name, result in measure_data(args).items():
            add(name, result)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.child:
        child(args.child)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "benchmark.json"
    machine = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine(),
        "threads": args.threads, "torch": torch.__version__, "transformers": transformers.__version__,
        "dtype": str(args.dtype), "batch_size": args.batch_size,
    }  # fmt: skip
    content: dict[str, Any] = {"machine": machine, "results": {}}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if {key: known["machine"].get(key) for key in machine} != machine:
            raise SystemExit(
                f"error: {path} is of another machine or setting: {known['machine']}. Choose another --output."
            )
        content["results"] = known["results"]
    machine["peak_flops"] = peak_flops(args.device, args.dtype)

    def save() -> None:
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        path.with_suffix(".md").write_text(tables(content), encoding="utf-8")

    measure(args, content["results"], save)
    made = [path, path.with_suffix(".md")]
    if "growth" in args.only:
        made.append(draw_growth(content["results"], args.output / "growth.png"))
    print(f"\n{tables(content)}\nMade: {', '.join(map(str, made))}")


if __name__ == "__main__":
    main()
