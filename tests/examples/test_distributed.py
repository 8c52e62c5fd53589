"""The programs in several processes (CPU, gloo): what they compute does not depend on how many there are."""

import shutil

import pytest
import tiny_data
import tiny_models
import torch
import train
import yaml
from tiny_runs import EXPERTS, ROOT, accelerate, assert_equal_weights, losses, moved_parts, torchrun, weights

from modeling_parrot import ParrotForConditionalGeneration, ParrotProcessor


pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = "examples/train.py"
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # of weights; found: 2e-6, and 1e-6 in the losses
WRITES = {"fsdp2": "optimizer.bin", "zero2": "global_step3", "zero3": "global_step3"}  # others: optimizer.pt
slow = pytest.mark.slow

# accelerate shards on accelerators only: on CPUs it quietly runs DDP instead. PyTorch's FSDP2 and DeepSpeed do run there
# once accelerate takes gloo for an accelerator's backend.
SHARDED_ON_CPU = """
import runpy, sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType

PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
sys.argv.pop(0)
sys.path.insert(0, "examples")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def launch(tmp_path):
    """`launch(engine, recipe, option...)` trains in two processes, by torchrun or a configuration that ships."""

    def start(engine: str, *arguments, processes: int = 2):
        if engine == "torchrun":
            return torchrun(TRAIN, *arguments, processes=processes)
        if engine == "ddp":
            return accelerate(engine, TRAIN, *arguments, processes=processes)
        if engine.startswith("zero"):
            pytest.importorskip("deepspeed")
        program = tmp_path / "sharded_on_cpu.py"
        program.write_text(SHARDED_ON_CPU)
        on_cpu = {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
        arguments = (program, TRAIN, *arguments, "--use_cpu", "false")
        return accelerate(engine, *arguments, processes=processes, **on_cpu)

    return start


@pytest.fixture(scope="module")
def trained(parts):
    """A checkpoint whose experts and router hold values, so that routing and every expert's gradient matter."""
    model = ParrotForConditionalGeneration.from_pretrained(
        parts.stage1, num_language_experts=4, num_active_experts=2, **EXPERTS
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_experts" in name:
                parameter.normal_(std=0.4)
    model.save_pretrained(parts.folder / "trained")
    ParrotProcessor.from_pretrained(parts.stage1).save_pretrained(parts.folder / "trained")
    return parts.folder / "trained"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """
    24 rows in an order in which, of two processes with one row each, both see images, one or the other, or none, for a
    pass or for a whole step of two passes; and every process and pass has another number of labels.
    """
    rows = []
    for number, kind in enumerate("ITIT" "TIIT" "IITT" "TTTT" "TTII" "ITTT"):  # fmt: skip
        answer = "it is a cat " + "and a dog " * (number % 5)
        if kind == "I":
            rows.append(tiny_data.llava_row(str(number), "<image>\nWhat?", answer, image=f"{number}.png"))
        else:
            rows.append(tiny_data.llava_row(str(number), f"Say {number}", answer))
    data = tiny_data.write(tmp_path_factory.mktemp("mixed"), rows)
    return [{"path": str(data), "image_folder": str(data.parent / "images")}]


@pytest.mark.parametrize(
    ("engine", "stage"),
    [
        ("torchrun", "instruction"),
        *(pytest.param("ddp", stage, marks=slow) for stage in ("alignment", "instruction")),
        *(pytest.param("fsdp2", stage, marks=slow) for stage in ("alignment", "instruction")),
        *(pytest.param("zero2", stage, marks=slow) for stage in ("alignment", "instruction")),
        *(pytest.param("zero3", stage, marks=slow) for stage in ("alignment", "instruction")),
    ],
)
def test_two_processes_equal_one(engine, stage, launch, recipe, trained, mixed, tmp_path):
    """The same losses and weights, whichever process sees images, with unequal labels, accumulating. Then: it loads."""
    common = {"checkpoint": str(trained), "adapter": None, "train_data": mixed, "stage": stage}
    common |= {"train_sampling_strategy": "sequential", "global_batch_size": 4, "learning_rate": 1e-2}
    common |= {"save_strategy": "steps", "save_steps": 3, "router_learning_rate": 2e-2}
    common |= {"adam_epsilon": 1e-4}  # so that noise in gradients that are almost zero stays noise
    train.main([recipe("one", **common)])
    done = launch(engine, recipe("two", per_device_train_batch_size=1, **common))
    assert "6 steps of 4 rows (1 per device x 2 process(es) x 2 accumulated)" in done.stdout
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    written = {path.name for path in (tmp_path / "two" / "checkpoint-3").iterdir()}
    assert WRITES.get(engine, "optimizer.pt") in written  # that engine did train
    assert_equal_weights(tmp_path / "two", tmp_path / "one", **CLOSE)
    assert_equal_weights(tmp_path / "two" / "checkpoint-3", tmp_path / "one" / "checkpoint-3", **CLOSE)

    moved, stayed = moved_parts(weights(trained), weights(tmp_path / "two"))
    learns = {"multi_modal_projector", "language_experts", "language_model", "lm_head"}
    assert moved == ({"multi_modal_projector"} if stage == "alignment" else learns)
    assert "vision_tower" in stayed
    for folder in (tmp_path / "two", tmp_path / "two" / "checkpoint-3"):
        model, processor = (
            ParrotForConditionalGeneration.from_pretrained(folder),
            ParrotProcessor.from_pretrained(folder),
        )
        inputs = tiny_models.encode(processor, [tiny_models.user("What?", tiny_models.picture())])
        assert model(**inputs).logits.isfinite().all()


@slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_resuming_on_another_number_of_processes(engine, launch, recipe, mixed, tmp_path):
    """From two to one and from one to two, in the middle of an epoch, with new experts: as if never interrupted."""
    common = {"train_data": mixed, "global_batch_size": 4, "max_steps": 9, "num_train_epochs": None}
    common |= {"learning_rate": 1e-2, "lr_scheduler_type": "cosine", "warmup_steps": 2, "adam_epsilon": 1e-4}
    common |= {"save_strategy": "steps", "save_steps": 4}
    train.main([recipe("whole", per_device_train_batch_size=4, **common)])
    for first, second in ((1, 2), (2, 1)):
        name = f"from{first}to{second}"
        launch(engine, recipe(name, per_device_train_batch_size=4 // first, **common), processes=first)
        for step in (8, 9):
            shutil.rmtree(tmp_path / name / f"checkpoint-{step}")
        written = (tmp_path / name / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns
        (tmp_path / name / "model.safetensors").unlink()
        path = recipe(name, per_device_train_batch_size=4 // second, **common, resume_from_checkpoint="true")
        done = launch(engine, path, processes=second)
        assert f"9 steps of 4 rows ({4 // second} per device x {second} process(es)" in done.stdout
        assert (tmp_path / name / "checkpoint-4" / "trainer_state.json").stat().st_mtime_ns == written
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
        assert_equal_weights(tmp_path / name, tmp_path / "whole", **CLOSE)


def test_another_engine_does_not_lose_the_optimizer(recipe, tmp_path, monkeypatch):
    common = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    train.main([recipe(**common)])
    resume = [recipe(**common), "--resume_from_checkpoint", "true"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit, match="was written by DDP, and FSDP cannot read .*--checkpoint .*checkpoint-2"):
        train.main(resume)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").unlink()
    (tmp_path / "run" / "checkpoint-2" / "latest").write_text("global_step2")
    with pytest.raises(SystemExit, match="was written by DeepSpeed, and DDP cannot read"):
        train.main(resume)


def test_sharded_weights_cannot_be_merged(recipe, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SystemExit, match="`merge_lora` needs the whole model in one process"):
        train.main([recipe(lora={"r": 2}, merge_lora=True)])


@slow
@pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without accelerators")
def test_processes_that_would_compute_something_else_are_refused(recipe):
    with pytest.raises(AssertionError, match="2 processes were started, but there is no accelerator"):
        torchrun(TRAIN, recipe(use_cpu=None))
    with pytest.raises(AssertionError, match="accelerate runs FSDP on accelerators only"):
        accelerate("fsdp2", TRAIN, recipe())


@slow
def test_accelerate_shares_the_questions_of_a_benchmark(trained, tmp_path):
    """Two processes that `accelerate launch` starts on CPUs with the configuration that ships answer as one does."""
    question = {"question": "What is it?", "A": "a cat", "B": "a dog", "answer": "A"}
    rows = [{"index": number, "image": tiny_data.encoded(number), **question} for number in range(5)]
    file = tiny_data.write_tsv(tmp_path / "mmmb_en.tsv", rows)
    command = ["examples/evaluate.py", "--model", trained, "--benchmark", file, "--like", "mmmb"]
    command += ["--max-new-tokens", 4, "--batch-size", 4, "--output"]
    accelerate("ddp", *command, tmp_path / "two")
    accelerate("ddp", *command, tmp_path / "one", processes=1)
    one, two = (tmp_path / name / "trained" / "mmmb-choice" for name in ("one", "two"))
    assert (one / "predictions.jsonl").read_text() == (two / "predictions.jsonl").read_text()
    assert len(list((one / "answers").iterdir())) == 1 and len(list((two / "answers").iterdir())) == 2


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_reads_the_configurations(name, stage, monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from accelerate.utils import DeepSpeedPlugin
    from deepspeed.runtime.config import DeepSpeedConfig

    content = yaml.safe_load((ROOT / "configuration" / "accelerate" / f"{name}.yaml").read_text())
    options = {key: value for key, value in content["deepspeed_config"].items() if value != "auto"}  # the Trainer's
    plugin = DeepSpeedPlugin(**options)
    plugin.set_mixed_precision(content["mixed_precision"])
    batch = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    asked = {key: value for key, value in plugin.deepspeed_config.items() if value != "auto"}
    read = DeepSpeedConfig(asked | batch)
    assert read.zero_optimization_stage == stage and read.bfloat16_config.enabled
    assert read.zero_config.gather_16bit_weights_on_model_save == (stage == 3)


@slow
def test_zero3_starts_new_models_as_one_process_does(launch, parts, recipe, tmp_path):
    """From parts, which run before they are put together; and new experts in a checkpoint that is split as it loads."""
    adapter = {"num_language_experts": 4, **EXPERTS}
    composed = {"vision_tower": str(parts.folder / "tower"), "checkpoint": None, "adapter": adapter}
    for name, changes in (("parts", composed), ("experts", {})):
        common = {"max_steps": 2, "learning_rate": 1e-3, "global_batch_size": 4, "adam_epsilon": 1e-4, **changes}
        train.main([recipe(f"{name}-one", **common)])
        launch("zero3", recipe(f"{name}-two", per_device_train_batch_size=2, **common))
        one, two = tmp_path / f"{name}-one", tmp_path / f"{name}-two"
        if name == "parts":
            assert losses(two) == pytest.approx(losses(one), abs=1e-5)
            assert_equal_weights(two, one, **CLOSE)
        else:  # their random numbers are others, but they do nothing before the first step
            assert losses(two)[0] == pytest.approx(losses(one)[0], abs=1e-5)
            spread, wanted = ({key: w.std().item() for key, w in weights(run).items()} for run in (two, one))
            for layer in ("gate_proj", "up_proj"):
                key = f"model.language_experts.{layer}.weight"
                assert spread[key] == pytest.approx(wanted[key], rel=0.1)
