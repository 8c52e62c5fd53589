"""Makes an English instruction set multilingual, as LRM-LLaVA and PARROT (section 4.4) did.

    python examples/build_multilingual.py audit finetune=chats.json pretrain=captions.json --output outputs/audit
    python examples/build_multilingual.py build RECIPE.yaml                  # --shard 3/64, --num-proc 4, --dry-run
    python examples/build_multilingual.py report RECIPE.yaml                 # quality per language: tables and plot
    python examples/build_multilingual.py review RECIPE.yaml review.csv      # suspicious translations, for people
    python examples/build_multilingual.py apply RECIPE.yaml review.csv       # their corrections
    python examples/build_multilingual.py rows RECIPE.yaml --mixture lrm_llava_stage2 --output rows.parquet

A recipe names the source, the languages and the translators: see `parrot_data.build.BuildSettings` for its keys, and
`configuration/data/` for one. `build` may be interrupted and started again, and started on any number of machines that
share the output folder, each with a shard of its own. What it writes is trained on as it is, by a recipe of
`examples/train.py` whose mixture chooses languages and formats; `rows` writes the same rows for other trainers.
"""

import argparse
import sys
from collections import Counter
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm
from train_recipe import check_key, mixture, named_file, read_yaml, set_nested, source
from train_report import proportions

from parrot_data import ConversationDataset, ImageReader
from parrot_data.audit import audit
from parrot_data.multilingual.calibration import apply_review, review_entries
from parrot_data.multilingual.parts import BuildSettings, PartBuilder, to_parallel
from parrot_data.multilingual.quality import QualitySettings
from parrot_data.multilingual.quality_report import report, table
from parrot_data.multilingual.review import write_review
from parrot_data.multilingual.segments import reason_to_keep, texts_to_translate
from parrot_data.multilingual.shards import Shard, build, damaged_files, manifests, statistics
from parrot_data.multilingual.translators import TranslationError
from parrot_data.sources import FEATURES, raw_rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("audit", help="which languages does a data set speak?")
    first.add_argument("files", nargs="+", metavar="[STAGE=]PATH", help="data files, folders or ids on the Hub")
    first.add_argument("--output", type=Path, required=True, help="folder for tables and chart")
    first.add_argument("--max-rows", type=int, help="only the first so many rows of each")
    for name, purpose in (
        ("build", "translate, check and write"),
        ("report", "quality per language"),
        ("review", "write the suspicious translations"),
        ("apply", "apply corrections"),
        ("rows", "write rows in the instruction formats"),
    ):
        command = commands.add_parser(name, help=purpose)
        command.add_argument("recipe", help="YAML file, or the name of one in configuration/data")
        if name == "build":
            command.add_argument("--shard", type=Shard.from_text, default=Shard(), help="for example 3/64")
            command.add_argument("--num-proc", type=int, default=1, help="processes that translate")
            command.add_argument("--dry-run", action="store_true", help="check and estimate, translate nothing")
        if name in ("review", "apply"):
            command.add_argument("file", type=Path, help=".csv for spreadsheets, or .jsonl")
        if name == "rows":
            command.add_argument(
                "--mixture", required=True, help="YAML file, or the name of one in configuration/mixtures"
            )
            command.add_argument("--output", type=Path, required=True, help="parquet file")
            command.add_argument("--seed", type=int, default=0)
    args, rest = parser.parse_known_args(arguments)
    try:
        if args.command == "audit":
            if rest:
                parser.error(f"unknown argument {rest[0]}")
            run_audit(args)
        else:
            settings, output = read_recipe(args.recipe, rest)
            COMMANDS[args.command](settings, output, args)
    except (ValueError, OSError, ImportError, TranslationError) as error:
        raise SystemExit(f"error: {error}") from error


def read_recipe(name: str, overrides: list[str]) -> tuple[BuildSettings, Path]:
    """Settings and output folder. `--source.path FILE` or `--languages '[cs, de]'` come in place of the recipe's.

    Raises:
        ValueError, FileNotFoundError: no or unreadable recipe, an unknown key or value.
    """
    path = named_file(name, "data")
    recipe = read_yaml(path)
    known = [item.name for item in fields(BuildSettings)] + ["output"]
    if rest := set_nested(recipe, overrides, [f"--{key}" for key in known]):
        raise ValueError(f"unknown argument {rest[0]}. Keys of a recipe: {', '.join(known)}.")
    for key in recipe:
        check_key(key, known, str(path))
    for key in ("source", "languages", "translator", "output"):
        if key not in recipe:
            raise ValueError(f"{path}: `{key}` is missing.")
    output = Path(recipe.pop("output"))
    recipe["source"] = source(recipe["source"], f"{path}, source")
    recipe["quality"] = QualitySettings.from_mapping(recipe.get("quality"))
    return BuildSettings(**recipe), output


def run_audit(args: argparse.Namespace) -> None:
    stages: dict[str, list[Any]] = {}
    for text in args.files:
        stage, is_named, path = text.partition("=")
        stages.setdefault(stage if is_named else "all", []).append(source({"path": path if is_named else text}, text))
    found = audit(stages, max_rows=args.max_rows)
    found.write(args.output)
    print(found.table())
    print(f"Made: {args.output}/ with audit.md, audit.csv, audit.json and audit.png")


def run_build(settings: BuildSettings, output: Path, args: argparse.Namespace) -> None:
    builder = PartBuilder(settings)
    total = survey(builder)
    if args.dry_run:
        return
    mine = sum(
        min(settings.rows_per_file, total - start)
        for number, start in enumerate(range(0, total, settings.rows_per_file))
        if number % args.shard.count == args.shard.index - 1
    )
    with tqdm(total=mine, unit="row", unit_scale=True, smoothing=0.1) as bar:
        made = build(builder, output, args.shard, args.num_proc, bar.update)
    lines = [line for done in manifests(output)[0].values() for line in done.values()]
    pending = sum((Counter(line["pending"]) for line in lines), Counter())
    print(
        f"Made: {output}/part-*.parquet, {made['rows']:,} rows in {made['files']:,} files ({made['earlier']:,} earlier)"
    )
    if pending:
        print(
            f"{sum(pending.values()):,} translations wait for a review: "
            f"python examples/build_multilingual.py review {args.recipe} review.csv"
        )


def survey(builder: PartBuilder) -> int:
    """Reads the source once, so that a bad row is found before anything is translated. Prints what there is to do.

    Returns:
        number of rows.
    """
    settings = builder.settings
    rows = 0
    sample: list[str] = []
    kept: Counter = Counter()
    for number, raw in enumerate(islice(raw_rows(settings.source), settings.source.max_rows)):
        row = to_parallel(raw, number, settings.source)
        rows += 1
        if number < 1000 and settings.source.keeps(row["language"], row["task"]):
            reason = reason_to_keep(row["turns"]) if row["language"] == "en" else "other language"
            kept[reason or "translated"] += 1
            if reason is None:
                sample += texts_to_translate(row["turns"], builder.instructions)
    if rows == 0:
        raise ValueError(f"{settings.source.path} has no rows.")
    seen = min(rows, 1000)
    print(f"{rows:,} rows into {', '.join(settings.languages)}. Of the first {seen:,}: {dict(kept)}.")
    for role, translator in (("translator", builder.translator), ("second translator", builder.second)):
        if translator is not None:
            languages = settings.languages if settings.subsets == "parallel" else settings.languages[:1]
            share = 1.0 if role == "translator" else settings.checked
            estimate = getattr(translator, "estimate", None)
            cost = f"; {estimate(sample, languages, share * rows / seen)}" if estimate else ""
            print(f"{role}: {translator.name}{cost}", flush=True)
    return rows


def run_report(settings: BuildSettings, output: Path, args: argparse.Namespace) -> None:
    done, missing = manifests(output)
    lines = [line for parts in done.values() for line in parts.values()]
    print(f"{sum(line['rows'] for line in lines):,} rows in {len(lines):,} files.")
    for title, key in (("In texts", "languages"), ("Waiting for a review", "pending"), ("Kept in English", "kept")):
        counts = sum((Counter(line[key]) for line in lines), Counter())
        print(f"{title}: " + (", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "none"))
    if missing:
        print(f"Shards that have not begun: {', '.join(missing)}")
    if damaged := damaged_files(output):
        raise ValueError(f"{output}: {', '.join(damaged)} is not what the manifest says. Remove it and build again.")
    found = statistics(output)
    report(found, output / "report")
    print(table(found))
    print(f"Made: {output}/report/ with quality.md, quality.json and quality.png")


def run_review(settings: BuildSettings, output: Path, args: argparse.Namespace) -> None:
    count = write_review(args.file, review_entries(output))
    print(
        f"Made: {args.file} with {count:,} texts. Fill the column `correction`: the right text, ok, or - to drop it."
    )


def run_apply(settings: BuildSettings, output: Path, args: argparse.Namespace) -> None:
    totals = apply_review(output, args.file)
    print(f"{output}: " + ", ".join(f"{count:,} {name}" for name, count in totals.items()))


def run_rows(settings: BuildSettings, output: Path, args: argparse.Namespace) -> None:
    """Rows in the instruction formats, in the chat form that TRL and others read: `messages` and `images`."""
    entry = {"path": str(output / "part-*.parquet"), "image_folder": settings.source.image_folder}
    mixed = mixture({"mixture": args.mixture, "sources": {"built": {**entry, "instructions": settings.instructions}}})
    rows = ConversationDataset(mixed, args.seed, ImageReader())
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(args.output, FEATURES.arrow_schema, compression="zstd") as writer:
        for start in tqdm(range(0, len(rows), 1000), unit="thousand rows"):
            part = [rows.stored_row(k) for k in range(start, min(start + 1000, len(rows)))]
            writer.write_table(pa.Table.from_pylist(part, FEATURES.arrow_schema))
    print(proportions(rows.counts()))
    print(f"Made: {args.output}, {len(rows):,} rows")


COMMANDS = {"build": run_build, "report": run_report, "review": run_review, "apply": run_apply, "rows": run_rows}


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main(sys.argv[1:])
