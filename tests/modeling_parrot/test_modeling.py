"""The model: routing is an input, batches equal single samples, and nothing is silently wrong."""

import copy

import pytest
import torch
from tiny_models import NUM_PATCHES, assistant, encode, picture, user

from modeling_parrot import ParrotForConditionalGeneration


TWO = [user("What is the same in both?", picture(0), picture(1))]
ONE = [user("Что на картинке?", picture(2))]
TEXT = [user("Resimde ne var?")]


def new_tokens(model, inputs, **options) -> list[list[int]]:
    """Generated tokens per row, up to and without the end token."""
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    rows = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    end = model.generation_config.eos_token_id
    return [row[: row.index(end)] if end in row else row for row in rows]


# ---------------------------------------------------------------------- routing


def test_routing_text_changes_the_visual_tokens_and_the_image_too(tiny):
    model, processor = tiny()
    first = model(**encode(processor, ONE))
    other_text = model(**encode(processor, [user("What is in the picture?", picture(2))]))
    other_image = model(**encode(processor, [user("Что на картинке?", picture(3))]))
    assert not torch.allclose(first.router_probs, other_text.router_probs, atol=1e-3)
    assert not torch.allclose(first.image_hidden_states, other_text.image_hidden_states, atol=1e-3)
    assert not torch.allclose(first.image_hidden_states, other_image.image_hidden_states, atol=1e-3)


def test_missing_routing_rows_are_an_error(tiny):
    model, processor = tiny()
    inputs = encode(processor, ONE)
    del inputs["routing_input_ids"], inputs["routing_attention_mask"]
    with pytest.raises(ValueError, match="`routing_input_ids` is missing.*ParrotProcessor"):
        model(**inputs)


def test_routing_rows_that_do_not_match_images_are_an_error(tiny):
    model, processor = tiny()
    inputs = encode(processor, TWO)
    inputs["routing_input_ids"] = inputs["routing_input_ids"][:1]
    inputs["routing_attention_mask"] = inputs["routing_attention_mask"][:1]
    with pytest.raises(ValueError, match="2 images: it must have one row per image"):
        model(**inputs)


def test_routing_mask_of_another_shape_is_an_error(tiny):
    model, processor = tiny()
    inputs = encode(processor, ONE)
    inputs["routing_attention_mask"] = inputs["routing_attention_mask"][:, :-1]
    with pytest.raises(ValueError, match="they must be equal"):
        model(**inputs)


def test_padding_of_routing_rows_changes_nothing(tiny):
    model, processor = tiny()
    inputs = encode(processor, ONE)
    expected = model(**inputs).router_probs
    inputs["routing_input_ids"] = torch.nn.functional.pad(inputs["routing_input_ids"], (0, 5), value=7)
    inputs["routing_attention_mask"] = torch.nn.functional.pad(inputs["routing_attention_mask"], (0, 5))
    torch.testing.assert_close(model(**inputs).router_probs, expected)


def test_row_without_text_is_uniform_and_finite(tiny):
    model, processor = tiny()
    output = model(**processor(images=picture(0), text="<image>", routing_text="", return_tensors="pt"))
    assert output.logits.isfinite().all()
    torch.testing.assert_close(output.router_probs, torch.full((1, 6), 1 / 6))


def test_expert_weights_can_be_forced(tiny):
    model, processor = tiny()
    inputs = encode(processor, ONE)
    routed = model(**inputs)
    same = model(**inputs, expert_weights=routed.router_probs)
    torch.testing.assert_close(same.logits, routed.logits)
    only_first = model(**inputs, expert_weights=torch.eye(6)[:1])
    assert not torch.allclose(only_first.logits, routed.logits, atol=1e-3)
    with pytest.raises(ValueError, match="one row of weights per image"):
        model(**inputs, expert_weights=torch.ones(2, 6))


def test_model_without_experts_needs_no_routing(tiny):
    model, processor = tiny(num_language_experts=0)
    inputs = encode(processor, ONE)
    with_rows = model(**inputs)
    del inputs["routing_input_ids"], inputs["routing_attention_mask"]
    assert with_rows.router_probs is None and model.model.language_experts is None
    assert torch.equal(model(**inputs).logits, with_rows.logits)


def test_tower_without_cls_routes_with_the_mean_patch(tiny):
    model, processor = tiny(tower="siglip")
    inputs = encode(processor, ONE)
    base = model.model
    features = base.multi_modal_projector(base._encode(inputs["pixel_values"])[0])
    text = base.get_input_embeddings()(inputs["routing_input_ids"])
    guidance = base.language_experts.guide(features.mean(1), text, inputs["routing_attention_mask"])
    torch.testing.assert_close(model(**inputs).router_probs, base.language_experts.route(guidance))


def test_default_strategy_drops_cls_after_it_routed(tiny):
    full, processor = tiny()
    patches, patch_processor = tiny(vision_feature_select_strategy="default")
    patches.load_state_dict(full.state_dict())
    a, b = full(**encode(processor, ONE)), patches(**encode(patch_processor, ONE))
    torch.testing.assert_close(a.router_probs, b.router_probs)
    torch.testing.assert_close(a.image_hidden_states[1:], b.image_hidden_states)
    assert len(a.image_hidden_states) == NUM_PATCHES + 1


# ---------------------------------------------------------------------- inputs and outputs


def test_wrong_number_of_placeholders_states_both_counts(tiny):
    model, processor = tiny()
    inputs = encode(processor, ONE)
    inputs["input_ids"][inputs["input_ids"] == model.config.image_token_id] = 5
    with pytest.raises(ValueError, match=r"17 features .* but 0 tokens"):
        model(**inputs)


def test_conflicting_inputs_are_refused(tiny):
    model, processor = tiny()
    inputs = encode(processor, ONE)
    features = model.get_image_features(
        inputs["pixel_values"], inputs["routing_input_ids"], inputs["routing_attention_mask"]
    )
    with pytest.raises(ValueError, match="not both"):
        model(**inputs, mm_encoder_outputs={"image": features})
    with pytest.raises(ValueError, match="exactly one"):
        model()


def test_encoded_images_replace_pixels(tiny):
    model, processor = tiny()
    inputs = encode(processor, TWO)
    expected = model(**inputs)
    features = model.get_image_features(
        inputs.pop("pixel_values"), inputs.pop("routing_input_ids"), inputs.pop("routing_attention_mask")
    )
    assert len(features.pooler_output) == 2 and features.router_probs.shape == (2, 6)
    again = model(**inputs, mm_encoder_outputs={"image": features})
    torch.testing.assert_close(again.logits, expected.logits)
    torch.testing.assert_close(again.router_probs, expected.router_probs)


def test_embeddings_instead_of_ids(tiny):
    model, processor = tiny()
    inputs = encode(processor, TWO)
    expected = model(**inputs).logits
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs).logits, expected)


def test_tuple_output_and_kept_logits(tiny):
    model, processor = tiny()
    inputs = encode(processor, ONE)
    expected = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, return_dict=False)[0], expected)
    torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, expected[:, -2:])
    torch.testing.assert_close(model(**inputs, logits_to_keep=torch.tensor([3, 5])).logits, expected[:, [3, 5]])


def test_accessors_that_serving_and_peft_use(tiny):
    model, _ = tiny()
    assert model.get_decoder() is model.model.language_model
    assert model.get_encoder("image") is model.model.vision_tower
    assert model.config.get_text_config() is model.config.text_config
    assert model.get_output_embeddings() is model.lm_head
    assert set(dict(model.model.named_children())) == {
        "vision_tower", "multi_modal_projector", "language_experts", "language_model",
    }  # fmt: skip


def test_loss_is_cross_entropy_and_divides_by_the_items_given(tiny):
    model, processor = tiny()
    inputs = encode(
        processor, [*ONE, assistant("кошка")], [*TEXT, assistant("kedi")], generate=False, padding_side="right"
    )
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[labels == model.config.image_token_id] = -100
    output = model(**inputs, labels=labels)
    shifted = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = torch.nn.functional.cross_entropy(*shifted, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(output.loss, total / (labels[:, 1:] != -100).sum())
    torch.testing.assert_close(model(**inputs, labels=labels, num_items_in_batch=torch.tensor(100)).loss, total / 100)


@pytest.mark.parametrize("items", [None, 40])
def test_logits_for_labels_only_changes_neither_loss_nor_gradients(tiny, items):
    model, processor = tiny()
    inputs = encode(processor, TWO, [*TEXT, assistant("kedi")], generate=False, padding_side="right")
    labels = inputs["input_ids"].clone()
    labels[:, : labels.shape[1] // 2] = -100
    labels[inputs["attention_mask"] == 0] = -100
    options = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
    model.train()
    results = []
    for only in (False, True):
        model.config.logits_for_labels_only = only
        model.zero_grad()
        output = model(**inputs, labels=labels, **options)
        output.loss.backward()
        assert (output.logits is None) == only
        results.append(
            (output.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-4, atol=1e-6)
    assert model.eval()(**inputs, labels=labels).logits is not None


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_layers_after_the_selected_one_are_not_run_and_stay(tiny, tower):
    model, processor = tiny(tower=tower)
    vision = model.model.vision_tower
    blocks = next(part for part in vision.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == 3)
    runs = []
    for number, block in enumerate(blocks):
        block.register_forward_hook(lambda *call, number=number: runs.append(number))
    inputs = encode(processor, ONE)
    keys = list(model.state_dict())
    with torch.no_grad():
        whole = vision(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        runs.clear()
        routing = inputs["routing_input_ids"], inputs["routing_attention_mask"]
        features = model.get_image_features(inputs["pixel_values"], *routing)
        assert runs == [0, 1] and list(model.state_dict()) == keys
        torch.testing.assert_close(features.last_hidden_state, whole, rtol=0, atol=0)
        all_states = model.get_image_features(inputs["pixel_values"], *routing, output_hidden_states=True)
    assert len(all_states.hidden_states) == 4 and runs == [0, 1, 0, 1, 2]


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize("language_model", ["qwen2", "llama"])
def test_batch_of_two_one_and_no_images_equals_each_alone(tiny, language_model):
    model, processor = tiny(language_model=language_model)
    chats = [TWO, ONE, TEXT]
    together = new_tokens(model, encode(processor, *chats))
    assert together == [new_tokens(model, encode(processor, chat))[0] for chat in chats]


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True, "top_k": 1}])
def test_beams_and_several_sequences_keep_images_with_their_rows(tiny, options):
    """Images are expanded as groups: AB, AB and not AA, BB."""
    model, processor = tiny()
    chats = [TWO, ONE, TEXT]
    together = new_tokens(model, encode(processor, *chats), **options)
    if "num_beams" in options:
        assert together == [new_tokens(model, encode(processor, chat), **options)[0] for chat in chats]
    else:
        greedy = [new_tokens(model, encode(processor, chat))[0] for chat in chats]
        assert together == [row for row in greedy for _ in range(2)]


def test_left_and_right_padding_give_the_same_logits(tiny):
    model, processor = tiny()
    sides = {}
    for side in ("left", "right"):
        inputs = encode(processor, TWO, ONE, TEXT, padding_side=side)
        logits = model(**inputs).logits
        sides[side] = [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]
    for left, right in zip(sides["left"], sides["right"], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_cached_generation_equals_uncached(tiny):
    model, processor = tiny()
    inputs = encode(processor, TWO)
    assert new_tokens(model, inputs) == new_tokens(model, inputs, use_cache=False)


def test_cached_chat_stays_exact_when_a_question_follows(tiny):
    """Scope "turn": the visual tokens of an earlier turn do not depend on a later question."""
    model, processor = tiny()
    chat = [*ONE, assistant("кошка"), user("And this one?", picture(4))]
    whole = encode(processor, chat)
    start = encode(processor, chat[:2], generate=False)
    length = start["input_ids"].shape[1]
    assert torch.equal(whole["input_ids"][:, :length], start["input_ids"])
    cached = model(**start, use_cache=True)
    rest = {name: whole[name][1:] for name in ("pixel_values", "routing_input_ids", "routing_attention_mask")}
    continued = model(
        input_ids=whole["input_ids"][:, length:], attention_mask=whole["attention_mask"],
        past_key_values=cached.past_key_values, **rest,
    )  # fmt: skip
    torch.testing.assert_close(continued.logits, model(**whole).logits[:, length:], rtol=1e-4, atol=1e-4)


def test_pipeline_answers_like_generate(tiny):
    from transformers import pipeline

    model, processor = tiny()
    expected = processor.decode(new_tokens(model, encode(processor, ONE))[0], skip_special_tokens=True)
    answer = pipeline("image-text-to-text", model=model, processor=processor)
    result = answer(text=ONE, max_new_tokens=8, do_sample=False, return_full_text=False)
    assert result[0]["generated_text"].strip() == expected.strip()


# ---------------------------------------------------------------------- precision, attention, compilation


def test_eager_and_sdpa_attention_agree(tiny):
    model, processor = tiny()
    inputs = encode(processor, TWO, ONE)
    results = []
    for kind in ("eager", "sdpa"):
        model.set_attn_implementation(kind)
        assert model.model.language_model.config._attn_implementation == kind
        assert model.model.vision_tower.config._attn_implementation == kind
        results.append(model(**inputs).logits[inputs["attention_mask"].bool()])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_bfloat16_forward_and_generate(tiny):
    model, processor = tiny()
    inputs = encode(processor, TWO, TEXT)
    expected = model(**inputs).logits
    low = copy.deepcopy(model).to(torch.bfloat16)
    output = low(**inputs.to(torch.bfloat16))
    assert output.logits.dtype == torch.bfloat16 and output.router_probs.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(output.logits.float().flatten(), expected.flatten(), dim=0) > 0.99
    assert low.generate(**inputs.to(torch.bfloat16), max_new_tokens=3).shape[0] == 2


def test_own_modules_compile_without_graph_breaks(tiny):
    model, processor = tiny()
    inputs = dict(encode(processor, ONE))
    expected = model(**inputs).logits
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(**inputs)
    assert explained.graph_break_count == 0, [str(reason.user_stack) for reason in explained.break_reasons]
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, 5)
    with pytest.raises(RuntimeError, match="do not match"):
        compiled(**inputs)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("experts", [0, 6])
@pytest.mark.parametrize("stage", ["alignment", "instruction"])
def test_each_stage_trains_its_parts_and_no_other(tiny, stage, experts):
    model, processor = tiny(num_language_experts=experts)
    report = model.set_training_stage(stage)
    inputs = encode(processor, ONE, TEXT, padding_side="right")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    moving = ("multi_modal_projector",) if stage == "alignment" else (
        "multi_modal_projector", "language_experts", "language_model", "lm_head",
    )  # fmt: skip
    expected = {name for name, _ in model.named_parameters() if any(part in name for part in moving)}
    assert reached == expected
    total = sum(p.numel() for p in model.parameters())
    assert sum(report["trainable"].values()) + sum(report["frozen"].values()) == total
    assert sum(report["trainable"].values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_unknown_stage_is_refused(tiny):
    with pytest.raises(ValueError, match="alignment, instruction"):
        tiny()[0].set_training_stage("pretraining")


def test_new_experts_learn_although_they_start_at_zero(tiny):
    """The router's first gradient is zero, as its experts are; after one step of the experts it is not."""
    model, processor = tiny(trained=False)
    model.set_training_stage("instruction")
    inputs = encode(processor, ONE, padding_side="right")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    experts = model.model.language_experts
    assert experts.router.weight.eq(0).all() and experts.down_proj.weight.eq(0).all()
    assert experts.gate_proj.weight.ne(0).any()
    sizes = []
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        sizes.append((experts.router.weight.grad.abs().max().item(), experts.down_proj.weight.grad.abs().max().item()))
        optimizer.step()
    assert sizes[0][0] == 0 and sizes[0][1] > 0 and sizes[1][0] > 0


@pytest.mark.parametrize("stage", ["alignment", "instruction"])
def test_gradient_checkpointing_gives_the_same_gradients(tiny, stage):
    model, processor = tiny()
    model.set_training_stage(stage)
    model.train()
    inputs = encode(processor, ONE, TEXT, padding_side="right")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-6)


def test_frozen_tower_keeps_no_graph_and_lora_on_it_still_learns(tiny):
    from peft import LoraConfig, get_peft_model

    model, processor = tiny()
    inputs = encode(processor, ONE, padding_side="right")
    model.set_training_stage("alignment")
    assert not model.model._encode(inputs["pixel_values"])[0].requires_grad
    config = LoraConfig(target_modules=r"model\.vision_tower\..*q_proj", init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    reached = [n for n, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any("vision_tower.encoder.layers.0" in name and "lora" in name for name in reached)


def test_lora_on_the_experts_changes_the_result(tiny):
    """Trap: slicing an expert's weights would go round LoRA."""
    from peft import LoraConfig, get_peft_model

    model, processor = tiny(num_active_experts=2)
    inputs = encode(processor, ONE)
    before = model(**inputs).logits
    config = LoraConfig(target_modules=r"model\.language_experts\.gate_proj", init_lora_weights=False)
    assert not torch.allclose(get_peft_model(model, config)(**inputs).logits, before, atol=1e-4)


def test_dummy_image_touches_every_module_and_changes_nothing(tiny):
    model, processor = tiny()
    model.set_training_stage("instruction")
    inputs = encode(processor, TEXT, padding_side="right")
    plain = model(**inputs, labels=inputs["input_ids"])
    model.config.encode_dummy_image = True
    dummy = model(**inputs, labels=inputs["input_ids"])
    torch.testing.assert_close(dummy.logits, plain.logits, rtol=0, atol=0)
    dummy.loss.backward()
    parts = [*model.model.multi_modal_projector.parameters(), *model.model.language_experts.parameters()]
    assert all(parameter.grad is not None and parameter.grad.eq(0).all() for parameter in parts)


def test_dummy_image_is_left_out_while_decoding(tiny):
    model, processor = tiny()
    model.config.encode_dummy_image = True
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**encode(processor, TEXT), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert len(calls) == 1


def test_from_pretrained_refuses_other_models(tmp_path):
    from tiny_models import save_language_model

    with pytest.raises(ValueError, match="is a `qwen2`, not a Parrot checkpoint.*from_vision_text_pretrained"):
        ParrotForConditionalGeneration.from_pretrained(save_language_model(tmp_path / "text"))
