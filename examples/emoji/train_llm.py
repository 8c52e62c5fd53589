"""Train the example's language model: a tiny multilingual causal LM that knows the concepts as text only.

    python examples/emoji/train_llm.py --output examples/emoji/base/llm

It learns names, keywords and translations in 13 languages, riddles, and chats in which an English description opens
the user's turn and the question follows in some language. In Parrot a picture will take the description's place.
No image is involved. Writes a Llama-type model (bf16), a byte-level BPE tokenizer with ChatML template and `metrics.json`.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from conversations import (
    Wording,
    choice_question,
    clues,
    distractors,
    english_description,
    is_held_out_riddle,
    load_questions,
    naming_question,
    options_for,
    riddle_question,
)
from emoji_data import Concept, EmojiData, load_data
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful assistant."
TOKENS = 8900
ROWS = 8960  # of the embedding matrix: a multiple of 64 with free rows, so that `<image>` needs no resizing
# A space belongs to the word before it. So a name has the same tokens at the start of an answer and inside a list,
# where usual byte-level BPE would have one form with a space and one without.
WORDS = r"\p{L}[\p{L}\p{M}]* ?|\p{N} ?|\n|[^\p{L}\p{N}\s]+ ?|\s"

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


# What a part of a document is: read only, read and learned, or a description that a picture will replace.
GIVEN, TRAINED, DESCRIPTION = 0, 1, 2
Part = tuple[str, int]
NOISE, LONGEST = 1.5, 8.0  # noise on descriptions and their length, both in lengths of a word's embedding
MISLED = 1.0  # how far a description is moved to mislead, at most, in lengths of its own


def make_tokenizer(data: EmojiData, wording: Wording) -> PreTrainedTokenizerFast:
    """Byte-level BPE on names (most often), keywords and wording of all languages."""
    texts = []
    for lang in data.languages:
        for concept in data.concepts:
            name = concept.names[lang]
            texts += [name] * 20 + concept.keywords[lang]
        lines = [line for value in wording[lang].values() if isinstance(value, list) for line in value]
        texts += [line.format(options="|", keywords="|") for line in lines for _ in range(20)]
        texts += [wording[lang]["language"] + ":"] * 20
    texts += [SYSTEM, "system\n", "user\n", "assistant\n"] * 50
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


class Corpus:
    """Endless training text. A document is a list of (text, role); see GIVEN, TRAINED and DESCRIPTION."""

    def __init__(self, data: EmojiData, wording: Wording, rng: random.Random):
        self.data, self.wording, self.rng = data, wording, rng

    def document(self) -> list[Part]:
        kinds = [
            self.translations,
            self.keywords,
            self.chat_about_description,
            self.chat_about_doubt,
            self.chat_riddles,
        ]
        return self.rng.choices(kinds, [0.3, 0.05, 0.25, 0.3, 0.1])[0](self.rng.choice(self.data.concepts))

    def translations(self, concept: Concept) -> list[Part]:
        """The name in English and some other languages, a line each."""
        others = self.rng.sample([lang for lang in self.data.languages if lang != "en"], self.rng.randint(4, 12))
        order = ["en", *others]
        if self.rng.random() < 0.2:
            self.rng.shuffle(order)
        parts = [("", GIVEN)]
        for lang in order:
            parts += [(self.wording[lang]["language"] + ": ", GIVEN), (f"{concept.names[lang]}\n", TRAINED)]
        return [*parts, (END_OF_TEXT, TRAINED)]

    def keywords(self, concept: Concept) -> list[Part]:
        """Name and keywords in one language."""
        lang = self.rng.choice(self.data.languages)
        words = concept.keywords[lang]
        some = self.wording[lang]["separator"].join(self.rng.sample(words, min(len(words), 5)))
        return [(f"{concept.names[lang]}: ", GIVEN), (f"{some}{END_OF_TEXT}", TRAINED)]

    def describe(self, concept: Concept) -> str:
        """English words as a reader of the picture might find them: the name, its keywords or both, in any order."""
        words = clues(concept, "en")
        words = self.rng.sample(words, min(len(words), self.rng.randint(0, 3)))
        name = concept.names["en"]
        kind = self.rng.random()
        if kind < 0.1 and len(words) > 1 and not is_held_out_riddle(concept, "en", words):
            return ", ".join(words)
        if kind < 0.5:
            return f"{name}: {', '.join(words)}" if words else name
        # A picture is many positions long, has no word order, and is taken for other things here and there.
        parts = [name] * self.rng.randint(1, 6) + words
        if len(parts) > 4:
            parts += [other.names["en"] for other in distractors(concept, self.data.concepts, self.rng, 1)]
        self.rng.shuffle(parts)
        return ", ".join(parts)

    def turn(self, concept: Concept, lang: str) -> tuple[str, str]:
        """One question about a described thing and its answer."""
        kind = self.rng.random()
        if lang == "en" and kind < 0.35:
            return self.rng.choice(self.wording["en"]["caption"]), concept.names["en"]
        if kind < 0.6:
            return naming_question(self.wording, lang, self.rng), concept.names[lang]
        options = options_for(concept, self.data.concepts, lang, self.rng)
        return choice_question(self.wording, lang, options, self.rng), concept.names[lang]

    def chat(self, turns: list[tuple[str, str]], description: str = "") -> list[Part]:
        parts = [(f"{TURN_START}system\n{SYSTEM}{TURN_END}\n", GIVEN)]
        for k, (question, answer) in enumerate(turns):
            parts.append((f"{TURN_START}user\n", GIVEN))
            if k == 0 and description:
                parts.append((f"{description}\n", DESCRIPTION))
            parts.append((f"{question}{TURN_END}\n{TURN_START}assistant\n", GIVEN))
            parts += [(f"{answer}{TURN_END}", TRAINED), ("\n", GIVEN)]
        return parts

    def languages(self, count: int) -> list[str]:
        """Languages of a chat's turns; English, which describes, is asked for more often."""
        return ["en" if self.rng.random() < 0.1 else self.rng.choice(self.data.languages) for _ in range(count)]

    def chat_about_description(self, concept: Concept) -> list[Part]:
        """An English description, then questions in any languages, answered in the question's."""
        turns = [self.turn(concept, lang) for lang in self.languages(self.rng.choice([1, 2, 3, 4, 5]))]
        return self.chat(turns, self.describe(concept))

    def chat_about_doubt(self, concept: Concept) -> list[Part]:
        """A description that leaves several things open, then questions whose options leave one of them, or none: then
        any option is an answer, and nothing else is.

        Without such chats a model learns that the options of a question can be ignored.
        """
        others = distractors(concept, self.data.concepts, self.rng, self.rng.randint(1, 4))
        times = self.rng.randint(1, 3)
        described = others if self.rng.random() < 0.5 else [concept, *others]
        names = [thing.names["en"] for thing in described for _ in range(times)]
        self.rng.shuffle(names)
        pool = [thing for thing in self.data.concepts if thing not in others]
        turns = []
        for lang in self.languages(self.rng.choice([1, 2, 3, 4])):
            options = options_for(concept, pool, lang, self.rng)
            turns.append((choice_question(self.wording, lang, options, self.rng), concept.names[lang]))
        return self.chat(turns, ", ".join(names))

    def chat_riddles(self, concept: Concept) -> list[Part]:
        """Riddles from keywords, about several things."""
        turns = []
        for lang in self.languages(self.rng.choice([1, 2, 3, 4])):
            words = clues(concept, lang)
            some = self.rng.sample(words, min(len(words), self.rng.randint(2, 4)))
            if len(some) >= 2 and not is_held_out_riddle(concept, lang, some):
                open_ = self.rng.random() < 0.5
                options = None if open_ else options_for(concept, self.data.concepts, lang, self.rng)
                turns.append((riddle_question(self.wording, lang, some, options, self.rng), concept.names[lang]))
            concept = self.rng.choice(self.data.concepts)
        return self.chat(turns) if turns else self.chat_about_description(concept)


def related_embeddings(tokenizer: PreTrainedTokenizerFast, data: EmojiData, wording: Wording, width: int) -> Tensor:
    """Start values for the token embeddings [ROWS, width]: tokens used for the same things start alike.

    As in latent semantic analysis, a token starts as the weighted sum of random directions, one for each concept that
    it names or is a keyword of, and one for each language that it occurs in. Training from here needs a fraction of
    the steps that it needs from noise, which matters on a CPU.
    """
    generator = torch.Generator().manual_seed(0)
    concepts, languages = torch.zeros(ROWS, len(data.concepts)), torch.zeros(ROWS, len(data.languages))
    for k, lang in enumerate(data.languages):
        for i, concept in enumerate(data.concepts):
            for text, weight in [(concept.names[lang], 3.0), *((word, 1.0) for word in concept.keywords[lang])]:
                ids = tokenizer(text)["input_ids"]
                concepts[ids, i] += weight
                languages[ids, k] += weight
        lines = [line for value in wording[lang].values() if isinstance(value, list) for line in value]
        for line in [*lines, wording[lang]["language"]]:
            languages[tokenizer(line)["input_ids"], k] += 20.0

    def directions(counts: Tensor) -> Tensor:
        return F.normalize(counts @ torch.randn(counts.shape[1], width, generator=generator), dim=1)

    noise = F.normalize(torch.randn(ROWS, width, generator=generator), dim=1)
    return 0.4 * directions(concepts) + 0.25 * directions(languages) + 0.2 * noise


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[list[Part]]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each document and their roles, by the parts' character offsets."""
    encoded = []
    batch = tokenizer(["".join(text for text, _ in parts) for parts in documents], return_offsets_mapping=True)
    for parts, ids, offsets in zip(documents, batch["input_ids"], batch["offset_mapping"], strict=True):
        roles = [role for text, role in parts for _ in text]
        encoded.append((ids, [roles[first] for first, _ in offsets]))
    return encoded


def batches(tokenizer: PreTrainedTokenizerFast, corpus: Corpus, tokens: int, rng: random.Random):
    """Endless batches of about `tokens` tokens, of documents of like length: ids and roles [B, L]. Padding is GIVEN."""
    while True:
        encoded = sorted(encode(tokenizer, [corpus.document() for _ in range(1024)]), key=lambda item: len(item[0]))
        groups: list[list[tuple[list[int], list[int]]]] = []
        group: list[tuple[list[int], list[int]]] = []
        for item in encoded:
            if group and (len(group) + 1) * len(item[0]) > tokens:
                groups.append(group)
                group = []
            group.append(item)
        rng.shuffle(groups)
        for group in groups:
            length = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), length), tokenizer.pad_token_id)
            roles = torch.full_like(ids, GIVEN)
            for i, (row, row_roles) in enumerate(group):
                ids[i, : len(row)] = torch.tensor(row)
                roles[i, : len(row)] = torch.tensor(row_roles)
            yield ids, roles


def as_pictures(embeddings: Tensor, described: Tensor) -> Tensor:
    """The embeddings [B, L, C] with descriptions (`described` [B, L]) as vague as what a projector writes in their place.

    A projector writes no exact words: each position is some blend of what the picture may show, as long as it pleases,
    and off by some noise. A model that has read nothing but words is thrown by that: it still names what is shown, but
    no longer looks at the options of a question. So half of the descriptions are blended, and all are scaled and noisy.
    """
    batch, length, width = embeddings.shape
    device = embeddings.device
    sharpness = 4 * torch.rand(batch, 1, 1, device=device)
    weights = torch.randn(batch, length, length, device=device) * sharpness
    blended = weights.masked_fill(~described[:, None, :], -torch.inf).softmax(-1).nan_to_num() @ embeddings
    blended = F.normalize(blended, dim=-1) * embeddings.norm(dim=-1, keepdim=True)
    vague = torch.where(torch.rand(batch, 1, 1, device=device) < 0.5, blended, embeddings)
    noise = torch.randn_like(vague) * torch.rand(batch, 1, 1, device=device) * NOISE * width**-0.5
    scale = LONGEST ** torch.rand(batch, 1, 1, device=device)
    return torch.where(described[..., None], (vague + noise) * scale, embeddings)


def misled(model: LlamaForCausalLM, embeddings: Tensor, ids: Tensor, roles: Tensor) -> Tensor:
    """How far, and where, to move descriptions [B, L, C] so that they mislead the model most; zero elsewhere.

    One step of gradient ascent on the loss, of random length up to MISLED lengths of the description (adversarial
    training; Miyato et al. 2017). A projector is fitted by gradient too: in stage 1 it finds whatever makes the model
    say a name. A model that was not hardened against such input then says it even where the options forbid it.
    """
    embeddings = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(model, embeddings, ids, roles), embeddings)
    gradient = F.normalize(gradient * (roles == DESCRIPTION)[..., None], dim=-1, eps=1e-30)
    length = MISLED * torch.rand(len(ids), 1, 1, device=ids.device) * embeddings.norm(dim=-1, keepdim=True)
    return (gradient * length).detach()


def loss_of(model: LlamaForCausalLM, embeddings: Tensor, ids: Tensor, roles: Tensor) -> Tensor:
    """Cross entropy on TRAINED positions; the head is computed only there. Padding is on the right, so causal attention
    needs no mask."""
    hidden = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, :-1]
    trained = roles[:, 1:] == TRAINED
    return F.cross_entropy(model.lm_head(hidden[trained]).float(), ids[:, 1:][trained])


def answer_loss(model: LlamaForCausalLM, ids: Tensor, roles: Tensor, misleading: float) -> Tensor:
    """The loss on answers, with descriptions read as a projector would write them, in a share `misleading` of the
    batches as one that means to mislead would."""
    embeddings = as_pictures(model.get_input_embeddings()(ids), roles == DESCRIPTION)
    if (roles == DESCRIPTION).any() and torch.rand(()) < misleading:
        embeddings = embeddings + misled(model, embeddings, ids, roles)
    return loss_of(model, embeddings, ids, roles)


@torch.no_grad()
def generate_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[str]) -> list[str]:
    """Greedy answers to single-turn chats."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    answers = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), 128):
        rows = order[start : start + 128]
        inputs = tokenizer([texts[i] for i in rows], padding=True, padding_side="left", return_tensors="pt")
        output = model.generate(**inputs.to(model.device), max_new_tokens=24, do_sample=False)  # type: ignore[misc]
        new = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, answer in zip(rows, new, strict=True):
            answers[i] = answer.strip()
    return answers


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: EmojiData, wording: Wording) -> dict:
    """Exact-match accuracy of generated answers per language; riddles use sets of keywords never trained on."""
    model.eval()
    table: dict[str, dict[str, float]] = {}
    for lang in data.languages:
        rng = random.Random(f"evaluation {lang}")
        asked: dict[str, list[tuple[str, str]]] = {"naming": [], "choice": [], "riddle": [], "riddle_choice": []}
        for concept in data.concepts:
            name, description = concept.names[lang], english_description(concept, rng)
            asked["naming"].append((f"{description}\n{naming_question(wording, lang, rng)}", name))
            options = options_for(concept, data.concepts, lang, rng)
            asked["choice"].append((f"{description}\n{choice_question(wording, lang, options, rng)}", name))
            words = clues(concept, lang)
            for _ in range(30):
                some = rng.sample(words, min(len(words), rng.randint(2, 4)))
                if len(some) >= 2 and is_held_out_riddle(concept, lang, some):
                    asked["riddle"].append((riddle_question(wording, lang, some, None, rng), name))
                    asked["riddle_choice"].append((riddle_question(wording, lang, some, options, rng), name))
                    break
        table[lang] = {}
        for kind, pairs in asked.items():
            answers = generate_answers(model, tokenizer, [question for question, _ in pairs])
            right = sum(answer == name for answer, (_, name) in zip(answers, pairs, strict=True))
            table[lang][kind] = round(right / len(pairs), 4)
            table[lang][f"{kind}_count"] = len(pairs)
    model.train()
    return table


def train(
    output: Path, steps: int, batch_tokens: int, seed: int, peak_lr: float, bf16: bool, start_from: Path | None
) -> None:
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, wording, rng = load_data(), load_questions(), random.Random(seed)
    tokenizer = (
        make_tokenizer(data, wording) if start_from is None else PreTrainedTokenizerFast.from_pretrained(start_from)
    )
    config = LlamaConfig(
        vocab_size=ROWS, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=3, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.data.copy_(related_embeddings(tokenizer, data, wording, config.hidden_size))
    if start_from is not None:
        model = LlamaForCausalLM.from_pretrained(start_from, dtype=torch.float32)
    torch.nn.Module.to(model, device)
    print(f"{len(tokenizer)} tokens, {model.num_parameters():,} parameters", flush=True)
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.02},
         {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}],
        peak_lr, betas=(0.9, 0.98),
    )  # fmt: skip
    stream = batches(tokenizer, Corpus(data, wording, rng), batch_tokens, rng)
    start, seen, running = time.time(), 0, None
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min(1, step / 100, (steps + 1 - step) / (0.6 * steps))
        ids, roles = next(stream)
        misleading = min(0.5, step / steps)  # it doubles a batch's cost, and what cannot read yet cannot be misled
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = answer_loss(model, ids.to(device), roles.to(device), misleading)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += int((ids != tokenizer.pad_token_id).sum())
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"step {step}/{steps} {time.time() - start:.0f} s {seen:,} tokens loss {running:.3f}", flush=True)
    seconds = time.time() - start
    model.cpu().bfloat16()
    model.generation_config.do_sample = False
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # The saved weights are what is measured.
    saved = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    languages = evaluate(saved, tokenizer, data, wording)
    metrics = {
        "languages": languages,
        "steps": steps, "tokens": seen, "seconds": round(seconds), "seed": seed, "parameters": saved.num_parameters(),
    }  # fmt: skip
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    for lang, scores in languages.items():
        print(lang, " ".join(f"{kind} {value}" for kind, value in scores.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--start-from", type=Path, help="go on with a model made by this program")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-lr", type=float, default=2e-3)
    parser.add_argument("--bf16", action="store_true", help="autocast: faster on a GPU or a CPU with AMX, else slower")
    args = parser.parse_args()
    train(args.output, args.steps, args.batch_tokens, args.seed, args.peak_lr, args.bf16, args.start_from)
