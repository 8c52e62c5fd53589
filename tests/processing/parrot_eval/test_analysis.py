"""Looking into a model: the router's words are equation 2's, regions are where the router looks, gaps are what they say."""

import numpy as np
import pytest
import tiny_models
import torch

from parrot_eval.analysis import encode, expert_weights, gap, modality_features, routing, whole_characters


QUESTIONS = ["What is in the picture?", "图中是什么？", "Что на картинке?"]


@pytest.fixture(scope="module")
def parrot(tiny):
    return tiny(num_language_experts=3)


def test_words_are_weighted_as_the_router_weights_them(parrot):
    model, processor = parrot
    found = routing(model, processor, tiny_models.picture(0), QUESTIONS[0])
    kept = {}
    experts = model.model.language_experts
    hook = experts.router.register_forward_hook(
        lambda module, inputs, output: kept.update(guidance=inputs[0], output=output)
    )
    inputs = encode(model, processor, tiny_models.picture(0), QUESTIONS[0])
    with torch.no_grad():
        model.model.get_image_features(
            inputs["pixel_values"], inputs["routing_input_ids"], inputs["routing_attention_mask"]
        )
    hook.remove()
    words = model.get_input_embeddings()(inputs["routing_input_ids"])[0].detach().numpy()
    np.testing.assert_allclose(found.attention @ words, kept["guidance"][0].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(found.experts, kept["output"][0].softmax(-1).detach().numpy(), atol=1e-6)
    assert "".join(found.words) == QUESTIONS[0]
    assert found.attention.sum() == pytest.approx(1)


def test_regions_say_where_small_changes_move_the_router(parrot):
    """Every patch is dimmed and brightened at random, pixel by pixel; the router moves as far as its region says."""
    model, processor = parrot
    size = tiny_models.IMAGE_SIZE
    picture = tiny_models.picture(1, (size, size))
    grey = tuple(round(255 * value) for value in processor.image_processor.image_mean)
    picture.paste(grey, (0, 0, size // 2, size))  # has nothing to dim, the processor makes it zero
    found = routing(model, processor, picture, QUESTIONS[1])
    size, side = tiny_models.PATCH, tiny_models.IMAGE_SIZE // tiny_models.PATCH
    assert found.regions.shape == (side, side) and found.regions.sum() == pytest.approx(1)
    inputs = encode(model, processor, picture, QUESTIONS[1])
    generator, draws = torch.Generator().manual_seed(0), 30
    changed = inputs["pixel_values"].repeat(side * side * draws, 1, 1, 1).unflatten(0, (side, side, draws))
    for row in range(side):
        for column in range(side):
            patch = changed[row, column, :, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
            patch *= 1 + 1e-2 * torch.randint(0, 2, patch.shape, generator=generator).mul(2).sub(1)
    rows = {key: inputs[key].repeat(side * side * draws, 1) for key in ("routing_input_ids", "routing_attention_mask")}
    with torch.no_grad():
        new = model.model.get_image_features(changed.flatten(0, 2), **rows).router_probs
    best = int(found.experts.argmax())
    moved = (new[:, best].log() - float(np.log(found.experts[best]))).abs().view(side * side, draws).mean(1).numpy()
    assert np.corrcoef(moved, found.regions.ravel())[0, 1] > 0.8
    assert found.regions[:, : side // 2].sum() < 0.05


def test_a_batch_of_questions_is_routed_as_single_ones_are(parrot):
    model, processor = parrot
    images = [tiny_models.picture(k) for k in range(3)]
    together = expert_weights(model, processor, images, QUESTIONS, batch_size=2)
    single = [
        routing(model, processor, image, question).experts for image, question in zip(images, QUESTIONS, strict=True)
    ]
    np.testing.assert_allclose(together, np.stack(single), atol=1e-6)


def test_a_model_without_experts_has_no_router(tiny):
    model, processor = tiny(num_language_experts=0)
    with pytest.raises(ValueError, match="no language experts"):
        routing(model, processor, tiny_models.picture(0), QUESTIONS[0])


@pytest.mark.parametrize("experts", [0, 3])
def test_features_are_means_of_what_the_language_model_reads(tiny, experts):
    model, processor = tiny(num_language_experts=experts)
    images = [tiny_models.picture(k) for k in range(2)]
    visual, textual = modality_features(model, processor, images, QUESTIONS[:2], ["a cat", "一只猫"])
    assert visual.shape == textual.shape == (2, 48)
    ids = processor.tokenizer("a cat", add_special_tokens=False, return_tensors="pt")["input_ids"]
    np.testing.assert_allclose(textual[0], model.get_input_embeddings()(ids)[0].mean(0).detach().numpy(), atol=1e-6)


def test_a_gap_is_none_between_equal_features_and_whole_between_separate_ones():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8))
    same = gap(features, features)
    assert same["centroid_distance"] == pytest.approx(0) and same["mean_cosine"] == pytest.approx(1)
    assert same["cka"] == pytest.approx(1) and same["separability"] < 0.6
    apart = gap(features + 20, features @ rng.normal(size=(8, 8)) - 20)
    assert apart["centroid_distance"] > 5 and apart["mean_cosine"] < 0 and apart["separability"] == 1
    turned = gap(features @ np.linalg.qr(rng.normal(size=(8, 8)))[0] * 3 + 1, features)
    assert turned["cka"] == pytest.approx(1) and turned["mean_cosine"] < 0.9
    assert gap(rng.normal(size=(60, 8)), features)["cka"] < 0.3


def test_tokens_that_are_parts_of_one_character_stand_together():
    class Bytes:
        """A tokenizer of single bytes."""

        def decode(self, tokens):
            return bytes(tokens).decode("utf-8", errors="replace")

    tokens = list("Дa图".encode())
    words, weights = whole_characters(Bytes(), tokens, [1.0] * len(tokens))
    assert (words, weights) == (["Д", "a", "图"], [2.0, 1.0, 3.0])
    assert whole_characters(Bytes(), tokens[:-1], [1.0] * 5)[1] == [
        2.0,
        1.0,
        2.0,
    ]  # broken off: nothing is lost
