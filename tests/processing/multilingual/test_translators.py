"""Translators: tiny models that learn three languages, and people's translations."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
import torch
from emoji.emoji_data import DATA_DIR
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from parrot_data.multilingual.seq2seq import LANGUAGE_TOKENS, Seq2SeqTranslator
from parrot_data.multilingual.translators import FileTranslator, TranslationError, translate_checked, translator_from


LANGUAGES = ["en", "zh", "pt", "ar", "tr", "ru", "cs", "de", "fr", "hr", "it", "ro", "es"]
SENTENCES = {
    "en": ["The cat sees a dog.", "A dog runs.", "Two cats sleep!", "What is <1>?"],
    "de": ["Die Katze sieht einen Hund.", "Ein Hund rennt.", "Zwei Katzen schlafen!", "Was ist <1>?"],
    "zh": ["猫看见一只狗。", "狗在跑。", "两只猫在睡觉！", "<1>是什么？"],
}
DIRECTIONS = [("en", "de"), ("en", "zh"), ("de", "en")]
CORPUS = [sentence for sentences in SENTENCES.values() for sentence in sentences]
FAMILIES = ["nllb", "m2m100", "mbart50", "madlad"]


class Fixed:
    """A translator that returns what it is told to."""

    name = "fixed"

    def __init__(self, *lines: str):
        self.lines = list(lines)

    def translate(self, texts, target, source="en"):
        return self.lines


# ---------------------------------------------------------------------------------------------- models


def save_tokenizer(family: str, folder: Path):
    """A tokenizer as the family has it, with words of the sentences above."""
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=250, special_tokens=special, show_progress=False))
    learned = json.loads(words.to_str())["model"]
    scored = [(piece, -float(len(learned["vocab"]) - number)) for piece, number in learned["vocab"].items()]
    if family == "nllb":
        merges: Any = [tuple(merge) for merge in learned["merges"]]
        NllbTokenizer(vocab=learned["vocab"], merges=merges).save_pretrained(folder)
    elif family == "mbart50":
        pieces = [(piece, 0.0) for piece in ("<unk>", "<s>", "</s>")] + scored[4:]
        MBart50Tokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="de_DE").save_pretrained(folder)
    elif family == "madlad":
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored[4:]]
        pieces += [(f"<2{language}>", 0.0) for language in SENTENCES]
        T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    else:
        from transformers import M2M100Tokenizer

        (folder / "corpus").write_text("\n".join(CORPUS * 20), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "corpus"), model_prefix=str(folder / "words"), model_type="word", vocab_size=150,
            hard_vocab_limit=False, normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "words.model"))
        names = [*special, *(pieces.id_to_piece(number) for number in range(3, pieces.get_piece_size()))]
        (folder / "words.json").write_text(json.dumps({piece: number for number, piece in enumerate(names)}))
        M2M100Tokenizer(folder / "words.json", folder / "words.model").save_pretrained(folder)


def save_model(family: str, folder: Path):
    """A one-layer model of the family, which has learned the sentences by heart from forced tokens or prefixes."""
    save_tokenizer(family, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shared = {"vocab_size": 400, "d_model": 64, "dropout": 0.0, "max_position_embeddings": 64}
    layers = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in [
        ("layers", 1), ("attention_heads", 2), ("ffn_dim", 64), ("layerdrop", 0.0),
    ]}  # fmt: skip
    bart: dict[str, Any] = {**shared, **layers, "attention_dropout": 0.0, "activation_dropout": 0.0}
    ids: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model: torch.nn.Module
    if family == "madlad":
        config = T5Config(
            vocab_size=400, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=0.0,
            **{"decoder_start_token_id": tokenizer.pad_token_id, "n_positions": 64, **ids},
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    elif family == "mbart50":
        model = MBartForConditionalGeneration(MBartConfig(**bart, **ids, decoder_start_token_id=2))
        model.generation_config.forced_eos_token_id = 2  # as the published checkpoints have it
    else:
        model = M2M100ForConditionalGeneration(M2M100Config(**bart, **ids, decoder_start_token_id=2))
    rows = []
    for source, target in DIRECTIONS:
        if family in ("nllb", "mbart50"):
            spelling = ["nllb", "mbart50"].index(family)
            tokenizer.src_lang = LANGUAGE_TOKENS[source][spelling]
            tokenizer.tgt_lang = LANGUAGE_TOKENS[target][spelling]
        elif family == "m2m100":
            tokenizer.src_lang, tokenizer.tgt_lang = source, target
        prefix = f"<2{target}> " if family == "madlad" else ""
        for question, answer in zip(SENTENCES[source], SENTENCES[target], strict=True):
            row = tokenizer(prefix + question, text_target=answer)
            rows.append({**row, "labels": row["labels"] + [-100] * (16 - len(row["labels"]))})
    batch = tokenizer.pad(rows, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=80)
    for _ in range(80):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    model.save_pretrained(folder)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """`saved(family)` gives the folder of a tiny translation model."""
    folders: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in folders:
            folder = tmp_path_factory.mktemp(family)
            save_model(family, folder)
            folders[family] = str(folder)
        return folders[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_translates_into_the_language_asked_for_and_back(saved, family):
    translator = Seq2SeqTranslator(saved(family), device="cpu")
    for source, target in DIRECTIONS:
        assert translate_checked(translator, SENTENCES[source], target, source) == SENTENCES[target]
        if family != "madlad":  # which is not told the source language
            spelled = {"nllb": LANGUAGE_TOKENS[source][0], "mbart50": LANGUAGE_TOKENS[source][1], "m2m100": source}
            assert translator.tokenizer.src_lang == spelled[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_equals_single_in_any_order(saved, family):
    single = Seq2SeqTranslator(saved(family), device="cpu", batch_size=1)
    batched = Seq2SeqTranslator(saved(family), device="cpu", batch_size=3)
    texts = [*SENTENCES["en"][::-1], *SENTENCES["en"], "A cat sees two dogs.", "cats"]  # the last two it never saw
    lines = batched.translate(texts, "de")
    assert lines == [single.translate([text], "de")[0] for text in texts]
    assert batched.translate([], "de") == []


def test_longer_text_is_translated_by_sentences_and_nothing_is_cut(saved):
    longest = max(len(Seq2SeqTranslator(saved("nllb")).tokenizer(text).input_ids) for text in SENTENCES["en"])
    translator = Seq2SeqTranslator(saved("nllb"), max_input_tokens=longest)
    english, german, chinese = (" ".join(SENTENCES["en"]), " ".join(SENTENCES["de"]), "".join(SENTENCES["zh"]))
    assert translator.translate([english], "de") == [german]
    assert translator.translate([english], "zh") == [chinese]  # no space after a Chinese full stop
    parts = translator._parts("", chinese * 5)
    assert len(parts) > 1 and all(parts) and "".join(parts) == chinese * 5
    with pytest.raises(TranslationError, match="1 of 2 text.*too long") as error:
        translator.translate(["A dog runs.", "The cat sees a dog " * 3], "de")
    assert error.value.texts == ["The cat sees a dog " * 3]
    assert error.value.finished == {"A dog runs.": "Ein Hund rennt."}


@pytest.mark.parametrize("family", ["mbart50", "madlad"])
def test_translation_that_did_not_end_is_an_error(saved, family):
    """mBART-50 is told to force an end when the length is reached, which must not hide the cut."""
    translator = Seq2SeqTranslator(saved(family), max_new_tokens=4)
    with pytest.raises(TranslationError, match="did not end.*max_new_tokens=4") as error:
        translator.translate(SENTENCES["en"], "de")
    assert "The cat sees a dog." in error.value.texts


def test_language_without_a_token_says_what_to_do(saved):
    with pytest.raises(ValueError, match="'xx'.*__xx__, <2xx>.*language_tokens={'xx': TOKEN}"):
        Seq2SeqTranslator(saved("nllb")).translate(["A dog runs."], "xx")
    translator = Seq2SeqTranslator(saved("nllb"), language_tokens={"xx": "deu_Latn"})
    assert translator.translate(["A dog runs."], "xx") == ["Ein Hund rennt."]
    with pytest.raises(ValueError, match="'xx'.*looked for xxx_Latn"):
        Seq2SeqTranslator(saved("nllb"), language_tokens={"xx": "xxx_Latn"}).translate(["A dog runs."], "xx")


@pytest.mark.parametrize("family", ["nllb", "m2m100", "mbart50"])
def test_all_thirteen_languages_have_a_token(saved, family):
    translator = Seq2SeqTranslator(saved(family))
    assert len({translator.language_token(language) for language in LANGUAGES}) == len(LANGUAGES)


def test_name_says_what_changes_the_output(saved):
    name = Seq2SeqTranslator(saved("nllb"), num_beams=2, dtype="bfloat16").name
    assert saved("nllb") in name and "num_beams=2" in name and "bfloat16" in name


# ---------------------------------------------------------------------------------------------- files

CONCEPTS = json.loads((DATA_DIR / "concepts.json").read_text(encoding="utf-8"))["concepts"]
NAMES = [concept["names"] for concept in CONCEPTS]


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_peoples_translations_are_used_in_both_directions(tmp_path, suffix):
    translator = FileTranslator(str(write_table(tmp_path / f"names.{suffix}", NAMES)))
    english = [names["en"] for names in NAMES]
    for language in LANGUAGES[1:]:
        first = {names["en"]: names[language] for names in reversed(NAMES)}
        translated = translate_checked(translator, english, language)
        assert translated == [first[name] for name in english]
        assert set(translate_checked(translator, translated, "en", source=language)) <= set(english)


def test_text_that_the_file_does_not_have_goes_to_the_other_translator(tmp_path):
    path = write_table(tmp_path / "a.csv", [{"en": "cat, or two", "de": "Katze"}, {"en": "dog", "de": ""}])
    with pytest.raises(TranslationError, match="a.csv.*en to de of 2 text.*'dog'.*en, de.*otherwise") as error:
        FileTranslator(str(path)).translate(["dog", "cat, or two", "cow", "dog"], "de")
    assert error.value.texts == ["dog", "cow"] and error.value.finished == {"cat, or two": "Katze"}
    translator = FileTranslator(str(path), otherwise=Fixed("Hund", "Kuh"))
    assert translator.translate(["dog", " cat, or two", "cow", "dog"], "de") == ["Hund", "Katze", "Kuh", "Hund"]
    assert "a.csv" in translator.name and "otherwise fixed" in translator.name
    with pytest.raises(TranslationError, match="fixed, en to de: 2 translation.*1 text"):
        translator.translate(["cow"], "de")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ValueError, match=".xlsx.*read from .csv"):
        FileTranslator(str(tmp_path / "a.xlsx"))
    (tmp_path / "a.csv").write_text("en,de\ncat,Katze\ncat, or two,Katze\n")
    with pytest.raises(ValueError, match="a.csv, row 2: more cells than columns.*quotes"):
        FileTranslator(str(tmp_path / "a.csv"))


def test_name_of_a_file_changes_with_its_content(tmp_path):
    path = write_table(tmp_path / "a.csv", [{"en": "cat", "de": "Katze"}])
    before = FileTranslator(str(path)).name
    write_table(path, [{"en": "cat", "de": "Kater"}])
    assert FileTranslator(str(path)).name != before


# ---------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["x"], "fixed, en to de: 1 translation.*2 text.*'b'"),
        (["x", "y", "z"], "3 translation.*2 text"),
        (["x", " "], "1 of 2 translations are empty.*'b'"),
    ],
)
def test_lines_that_do_not_fit_the_texts_are_refused(lines, message):
    with pytest.raises(TranslationError, match=message):
        translate_checked(Fixed(*lines), ["a", "b"], "de")


def test_recipe_names_a_translator(tmp_path, saved):
    path = str(write_table(tmp_path / "a.csv", [{"en": "cat", "de": "Katze"}]))
    seq2seq = {"kind": "seq2seq", "model": saved("nllb"), "batch_size": 2}
    translator = translator_from({"kind": "file", "path": path, "otherwise": seq2seq})
    assert translator.translate(["A dog runs.", "cat"], "de") == ["Ein Hund rennt.", "Katze"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "gpt"}, "seq2seq, endpoint, file, is 'gpt'"),
        ({"path": "a.csv"}, "is None"),
        ({"kind": "file", "path": "a.csv", "modle": "x"}, r"unknown arguments \['modle'\].*path, otherwise"),
        ({"kind": "endpoint", "model": "m"}, r"missing ones \['base_url'\].*concurrency"),
        ({"kind": "file", "path": "a.csv", "otherwise": {"kind": "gpt"}}, "is 'gpt'"),
    ],
)
def test_mistakes_of_a_recipe_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        translator_from(settings)
