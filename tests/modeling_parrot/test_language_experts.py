"""Equations 2 to 5: the wide, block-scaled MLP equals separate experts, summed one by one."""

import accelerate
import pytest
import torch
from torch.nn.functional import linear, silu

from configuration_parrot import ParrotConfig
from modeling_parrot.language_experts_parrot import ParrotLanguageExperts


N, S, C, E, W, L = 3, 5, 16, 4, 6, 7


def experts(**options) -> ParrotLanguageExperts:
    config = ParrotConfig(
        text_config={"model_type": "qwen2", "hidden_size": C},
        num_language_experts=E,
        expert_intermediate_size=W,
        **options,
    )
    torch.manual_seed(0)
    module = ParrotLanguageExperts(config).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def one_by_one(module: ParrotLanguageExperts, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The same by a loop over images and experts."""
    result = []
    for image, row in zip(features, weights, strict=True):
        mixture = torch.zeros_like(image)
        for index, weight in enumerate(row):
            block = slice(index * W, (index + 1) * W)
            if module.gate_proj is None:
                hidden = silu(linear(image, module.up_proj.weight[block], module.up_proj.bias[block]))
                output = linear(hidden, module.down_proj.weight[:, block], module.down_bias.weight[:, index])
            else:
                hidden = silu(linear(image, module.gate_proj.weight[block])) * linear(
                    image, module.up_proj.weight[block]
                )
                output = linear(hidden, module.down_proj.weight[:, block])
            mixture = mixture + weight * output
        result.append(module.residual_scale * image + module.expert_scale * mixture)
    return torch.stack(result)


@pytest.mark.parametrize("expert_type", ["swiglu", "mlp"])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 1.0), (1.0, 0.1), (1.0, 0.0)])
@pytest.mark.parametrize("active", [None, 1, 2, 3, 4])
def test_wide_mlp_equals_experts_one_by_one(expert_type, scales, active):
    module = experts(
        expert_type=expert_type, expert_scale=scales[0], residual_scale=scales[1], num_active_experts=active
    )
    features = torch.randn(N, S, C, dtype=torch.double)
    weights = module.select(torch.randn(N, E, dtype=torch.double).softmax(-1))
    assert (weights > 0).sum(-1).eq(active or E).all()
    torch.testing.assert_close(module(features, weights), one_by_one(module, features, weights))


@pytest.mark.parametrize("expert_type", ["swiglu", "mlp"])
@pytest.mark.parametrize("frozen", ["", "weights", "down_proj", "weights down_proj", "gate_proj up_proj"])
@pytest.mark.parametrize("plain", [True, False])
def test_gradients_equal_those_of_experts_one_by_one(monkeypatch, expert_type, frozen, plain):
    monkeypatch.setattr("modeling_parrot.language_experts_parrot.is_plain_linear", lambda layer: plain)
    module = experts(expert_type=expert_type)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in ["router", *frozen.split()])
    features = torch.randn(N, S, C, dtype=torch.double, requires_grad=True)
    weights = torch.randn(N, E, dtype=torch.double).softmax(-1).requires_grad_("weights" not in frozen)
    inputs = [tensor for tensor in (features, weights, *module.parameters()) if tensor.requires_grad]
    wide = torch.autograd.grad(module(features, weights).pow(2).sum(), inputs)
    single = torch.autograd.grad(one_by_one(module, features, weights).pow(2).sum(), inputs)
    for a, b in zip(wide, single, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("expert_type", ["swiglu", "mlp"])
def test_running_active_experts_only_changes_neither_result_nor_gradients(monkeypatch, expert_type):
    module = experts(expert_type=expert_type, num_active_experts=2)
    features = torch.randn(N, S, C, dtype=torch.double, requires_grad=True)
    probabilities = torch.randn(N, E, dtype=torch.double).softmax(-1).requires_grad_()
    inputs = [features, probabilities, *(p for name, p in module.named_parameters() if "router" not in name)]
    rows = []
    plain = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *rest: rows.append(len(x)) or plain(x, *rest))
    results = []
    for dense in (False, True):
        if dense:
            monkeypatch.setattr(module, "_can_slice", lambda: False)
        rows.clear()
        output = module(features, module.select(probabilities))
        kinds = 3 if expert_type == "swiglu" else 2
        biases = 0 if module.down_bias is None else 1
        assert sum(rows) - biases * N == (
            kinds * N if dense else kinds * 2 * N
        )  # images, of one wide MLP or of k each
        results.append([output, *torch.autograd.grad(output.pow(2).sum(), inputs)])
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense)


def test_mixed_precision_gives_the_gradients_of_full_precision_up_to_rounding():
    module = experts().float()
    features, weights = torch.randn(N, S, C), torch.rand(N, E)
    gradients = []
    for is_mixed in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            output = module(features, weights)
        output.float().sum().backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) == 3
    for name, full in gradients[0].items():
        assert gradients[1][name].dtype == torch.float32
        assert (gradients[1][name] - full).norm() < 0.02 * full.norm()


@pytest.mark.parametrize("active", [None, 2])
@pytest.mark.parametrize("trains", [True, False])
def test_experts_whose_weights_are_elsewhere_give_the_same(active, trains):
    module = experts(num_active_experts=active)
    features, weights = torch.randn(N, S, C).double(), module.select(torch.rand(N, E).double())
    expected = module(features, weights)
    accelerate.cpu_offload(module, execution_device=torch.device("cpu"))
    with torch.set_grad_enabled(trains):
        torch.testing.assert_close(module(features, weights), expected)


@pytest.mark.parametrize("expert_hidden_act", ["silu", "gelu"])
def test_only_gate_and_up_are_kept_for_the_backward_pass(expert_hidden_act):
    module, kept = experts(expert_hidden_act=expert_hidden_act), []
    features = torch.randn(N, S, C, dtype=torch.double, requires_grad=True)
    weights = torch.rand(N, E, dtype=torch.double)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = module(features, weights)
    wide = {tensor.data_ptr() for tensor in kept if tensor.numel() == N * S * E * W}
    assert len(wide) == 2 and output.requires_grad


def test_selection_keeps_the_most_probable_and_does_not_rescale():
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert experts(num_active_experts=2).select(probabilities).tolist() == [
        [0.0, pytest.approx(0.4), 0.0, pytest.approx(0.3)]
    ]


def test_guidance_is_attention_over_words():
    """Equation 2, and padding does not count."""
    module, text = experts(), torch.randn(1, L, C, dtype=torch.double)
    query = torch.randn(1, C, dtype=torch.double)
    expected = (query @ text[0, :4].T / C**0.5).softmax(-1) @ text[0, :4]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    torch.testing.assert_close(module.guide(query, text, mask), expected, rtol=1e-6, atol=1e-6)


def test_empty_routing_text_gives_zero_guidance_and_uniform_routing():
    module = experts()
    guidance = module.guide(torch.randn(1, C).double(), torch.randn(1, L, C).double(), torch.zeros(1, L))
    assert guidance.eq(0).all()
    assert torch.equal(module.route(guidance), torch.full((1, E), 1 / E))


@pytest.mark.parametrize("bad", [{"num_active_experts": 5}, {"num_active_experts": 0}, {"num_language_experts": -1}])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(Exception, match="expert"):
        ParrotConfig(**{"num_language_experts": E, **bad})
