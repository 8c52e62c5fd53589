"""Translation with sequence-to-sequence models of transformers: NLLB, M2M100, mBART-50, MADLAD-400."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from parrot_data.multilingual.translators import TranslationError


# NLLB's and mBART-50's tokens. M2M100 (__de__) and MADLAD-400 (<2de>) use the code itself.
LANGUAGE_TOKENS = {
    "en": ("eng_Latn", "en_XX"), "zh": ("zho_Hans", "zh_CN"), "pt": ("por_Latn", "pt_XX"), "ar": ("arb_Arab", "ar_AR"),
    "tr": ("tur_Latn", "tr_TR"), "ru": ("rus_Cyrl", "ru_RU"), "cs": ("ces_Latn", "cs_CZ"), "de": ("deu_Latn", "de_DE"),
    "fr": ("fra_Latn", "fr_XX"), "hr": ("hrv_Latn", "hr_HR"), "it": ("ita_Latn", "it_IT"), "ro": ("ron_Latn", "ro_RO"),
    "es": ("spa_Latn", "es_XX"),
}  # fmt: skip
SENTENCE_END = re.compile(r"(?<=[.!?…؟])\s+|(?<=[。！？])")


class Seq2SeqTranslator:
    """
    A translation model of transformers: NLLB, M2M100, mBART-50, MADLAD-400 and others that name a language by a token.

    A token in angle brackets (<2de>) is put before the text, any other is forced as the first of the translation.

    Args:
        model: id or folder.
        device: by default a GPU if there is one.
        dtype: of the weights; "auto" is the checkpoint's.
        num_beams, max_new_tokens: of generation, which is not sampled.
        max_input_tokens: longer texts are translated in parts that end with a sentence. By default the model's limit;
            less is better for models trained on sentences, which leave out some of a paragraph.
        language_tokens: {language code: token}, for languages that are not found in the vocabulary.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int = 32,
        num_beams: int = 1,
        max_new_tokens: int = 512,
        max_input_tokens: int | None = None,
        language_tokens: Mapping[str, str] | None = None,
    ):
        self.model_id, self.batch_size, self.language_tokens = model, batch_size, dict(language_tokens or {})
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=dtype).to(self.device).eval()
        own = [getattr(self.model.config, key, None) for key in ("max_position_embeddings", "n_positions")]
        self.max_input_tokens = min(n for n in (max_input_tokens, self.tokenizer.model_max_length, *own) if n)
        self.generation = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
        settings = self.generation | {"max_input_tokens": max_input_tokens, "dtype": self.model.dtype}
        self.name = f"seq2seq {model} ({', '.join(f'{key}={value}' for key, value in settings.items())})"

    def language_token(self, language: str) -> tuple[str, int]:
        """A language's token and its id. Raises ValueError if the vocabulary has none."""
        known = (*LANGUAGE_TOKENS.get(language, ()), f"__{language}__", f"<2{language}>")
        spellings = (self.language_tokens[language],) if language in self.language_tokens else known
        for token in spellings:
            token_id = self.tokenizer.convert_tokens_to_ids(token)
            if token_id not in (None, self.tokenizer.unk_token_id):
                return token, token_id
        raise ValueError(
            f"{self.model_id} has no token for language {language!r} (looked for {', '.join(spellings)}). If the "
            f"model's card names one, give it as language_tokens={{{language!r}: TOKEN}}, else use another model."
        )

    def translate(self, texts: Sequence[str], target: str, source: str = "en") -> list[str]:
        """Raises TranslationError for texts that the model cannot read or write whole; see also `language_token`."""
        token, token_id = self.language_token(target)
        prefix, forced = (f"{token} ", None) if token.startswith("<") else ("", token_id)
        if prefix and token_id not in self.tokenizer(prefix).input_ids:
            raise ValueError(f"{self.model_id}: the tokenizer takes {token} apart, so the model would not see it.")
        if hasattr(self.tokenizer, "src_lang"):  # which M2M100 wants without the underscores
            self.tokenizer.src_lang = self.language_token(source)[0].strip("_")
        parts = {text: self._parts(prefix, text) for text in texts}
        distinct = {part for found in parts.values() for part in found}
        longest_first = sorted(distinct, key=lambda part: (-len(part), part))
        translated: dict[str, str] = {}
        for start in range(0, len(longest_first), self.batch_size):
            translated |= self._generate(prefix, longest_first[start : start + self.batch_size], forced)
        finished = {
            text: _join([translated[part] for part in found])
            for text, found in parts.items()
            if found and all(part in translated for part in found)
        }
        if failed := [text for text in parts if text not in finished]:
            raise TranslationError(
                f"{self.name}, {source} to {target}: {len(failed)} of {len(parts)} text(s) have a sentence that is too "
                f"long to read ({self.max_input_tokens} tokens) or whose translation did not end "
                f"(max_new_tokens={self.generation['max_new_tokens']}). The first: {failed[0]!r}. Leave such rows out, "
                "or use larger limits or another model.",
                failed,
                finished,
            )
        return [finished[text] for text in texts]

    def _parts(self, prefix: str, text: str) -> list[str]:
        """The text if it fits, else runs of sentences that fit; none if a sentence does not."""

        def fits(part: str) -> bool:
            return len(self.tokenizer(prefix + part).input_ids) <= self.max_input_tokens

        parts: list[str] = []
        for sentence in [text] if fits(text) else SENTENCE_END.split(text):
            if parts and fits(longer := _join([parts[-1], sentence])):
                parts[-1] = longer
            elif not fits(sentence):
                return []
            else:
                parts.append(sentence)
        return parts

    def _generate(self, prefix: str, batch: Sequence[str], forced: int | None) -> dict[str, str]:
        """{text: translation} of those whose translation ended."""
        inputs = self.tokenizer([prefix + text for text in batch], padding=True, return_tensors="pt").to(self.device)
        # Without the length and the end that some checkpoints force, a cut translation would look like a whole one.
        options = {**self.generation, "do_sample": False, "max_length": None, "forced_eos_token_id": None}
        with torch.inference_mode():
            generated = self.model.generate(**inputs, forced_bos_token_id=forced, **options)  # [B, L]
        end = self.model.generation_config.eos_token_id
        ends = end if isinstance(end, list) else [end]
        result = {}
        for text, ids in zip(batch, generated.tolist(), strict=True):
            ids = ids[1 if forced is None else 2 :]  # after the decoder's start token and the language's
            lengths = [ids.index(end) for end in ends if end in ids]
            if lengths:
                result[text] = self.tokenizer.decode(ids[: min(lengths)], skip_special_tokens=True).strip()
        return result


def _join(sentences: Sequence[str]) -> str:
    """Sentences as one text, without a space after a full-width stop."""
    return re.sub(r"(?<=[。！？]) ", "", " ".join(sentences))
