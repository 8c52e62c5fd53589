"""The projector and the text-guided mixture of language experts (PARROT, section 4.3, equations 2 to 5)."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2FN

from configuration_parrot import ParrotConfig


class ParrotMultiModalProjector(nn.Module):
    """Two linear layers with an activation between them: tower features [..., Dv] to word embeddings' width [..., C]."""

    def __init__(self, config: ParrotConfig):
        super().__init__()
        vision_width, text_width = config.vision_config.hidden_size, config.text_config.hidden_size
        self.linear_1 = nn.Linear(vision_width, text_width, bias=config.multimodal_projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(text_width, text_width, bias=config.multimodal_projector_bias)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(image_features)))


class ParrotRouter(nn.Linear):
    """Equation 3's linear layer, without bias. A class of its own, so that its initialisation (uniform routing) is."""


class ParrotExpertOutput(nn.Linear):
    """The experts' last layer. A class of its own, because it starts at zero: new experts change no visual token."""


class ParrotLanguageExperts(nn.Module):
    """
    Mixture of language experts, guided by the text of the prompt.

    An image's routing probabilities depend on the image and its text, not on the token. So the E experts of width I
    are one wide MLP of E * I hidden units, scaled block-wise by the probabilities: three large products, no loop over
    experts, and plain linear layers that LoRA, quantisation and sharding know. Where only some experts are active, and
    the weights are plain, each runs on its own images only.

    Shapes: N images, S visual tokens, L tokens of routing text, C width of the language model, E experts.
    """

    def __init__(self, config: ParrotConfig):
        super().__init__()
        self.num_experts = config.num_language_experts
        self.num_active = config.num_active_experts or self.num_experts
        self.expert_scale = config.expert_scale
        self.residual_scale = config.residual_scale
        width, hidden = config.text_config.hidden_size, self.num_experts * config.expert_intermediate_size
        with_bias = config.expert_type == "mlp"

        self.router = ParrotRouter(width, self.num_experts, bias=False)
        self.gate_proj = None if with_bias else nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=with_bias)
        self.act = ACT2FN[config.expert_hidden_act]
        self.is_swiglu = not with_bias and config.expert_hidden_act in ("silu", "swish")
        self.down_proj = ParrotExpertOutput(hidden, width, bias=False)
        # The output biases cannot be one wide bias: each expert's own is weighted by its probability.
        self.down_bias = ParrotExpertOutput(self.num_experts, width, bias=False) if with_bias else None

    def guide(
        self, class_feature: torch.Tensor, text_embeddings: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        """
        Equation 2: the image's CLS token attends to the word embeddings of its routing text.

        Args:
            class_feature: [N, C].
            text_embeddings: [N, L, C].
            text_mask: [N, L], true or 1 on text, false or 0 on padding. A row without text gives zeros.

        Returns:
            [N, C].
        """
        text_mask = text_mask.bool()
        scores = torch.einsum("nc,nlc->nl", class_feature, text_embeddings) * class_feature.shape[-1] ** -0.5  # [N, L]
        scores = scores.float().masked_fill(~text_mask, torch.finfo(torch.float32).min)
        weights = scores.softmax(dim=-1) * text_mask  # a row without text becomes zero, not a mean of padding
        return torch.einsum("nl,nlc->nc", weights.to(text_embeddings.dtype), text_embeddings)  # [N, C]

    def route(self, guidance: torch.Tensor) -> torch.Tensor:
        """Equation 3: probabilities [N, E] in float32 from the guidance [N, C]."""
        return self.router(guidance).float().softmax(dim=-1)

    def select(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Keeps each image's k most probable experts and sets the others to zero; [N, E] to [N, E]. Not rescaled."""
        if self.num_active == self.num_experts:
            return probabilities
        kept = probabilities.topk(self.num_active, dim=-1)
        return torch.zeros_like(probabilities).scatter(-1, kept.indices, kept.values)

    def forward(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """
        Equations 4 and 5.

        Args:
            features: projected image features [N, S, C].
            weights: each image's expert weights [N, E].

        Returns:
            The visual tokens G [N, S, C], in the features' dtype.
        """
        weights = weights.to(features.dtype)
        mixture = self._mix_active(features, weights) if self._can_slice() else self._mix_all(features, weights)
        if self.down_bias is not None:
            mixture = mixture + self.down_bias(weights)[:, None]
        return self.residual_scale * features + self.expert_scale * mixture

    def _mix_all(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Every expert on every image, as one wide MLP; [N, S, C] to [N, S, C]."""
        up = self.up_proj(features)  # [N, S, E * I]
        gate = None if self.gate_proj is None else self.gate_proj(features)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._mix_hidden(gate, up, weights)
        # Both keep gate and up for the backward pass, and not the three other tensors of their size.
        if self.is_swiglu and is_plain_linear(self.down_proj):
            return _SwiGLUMixture.apply(gate, up, weights, self.down_proj.weight)
        # What is recomputed is element by element: recomputing stops before the matrix product, whose input is the last
        # thing missing.
        return checkpoint(self._mix_hidden, gate, up, weights, use_reentrant=False)

    def _mix_hidden(self, gate: torch.Tensor | None, up: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """From gate (if any) and up, [N, S, E * I], to the weighted mixture of experts [N, S, C]."""
        hidden = self.act(up) if gate is None else self.act(gate) * up
        hidden = hidden.unflatten(-1, (self.num_experts, -1)) * weights[:, None, :, None]  # [N, S, E, I]
        return self.down_proj(hidden.flatten(-2))

    def _mix_active(self, features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The same where most weights are zero: each expert only on the images that it is active for."""
        split = (self.num_experts, -1)
        ups, downs = self.up_proj.weight.unflatten(0, split), self.down_proj.weight.unflatten(1, split).unbind(1)
        up_biases = None if self.up_proj.bias is None else self.up_proj.bias.unflatten(0, split)
        gates = None if self.gate_proj is None else self.gate_proj.weight.unflatten(0, split).unbind()
        mixture = torch.zeros_like(features)
        active = weights.detach() != 0  # [N, E]
        for expert, up_weight in enumerate(ups.unbind()):
            rows = active[:, expert].nonzero().flatten()
            if len(rows) == 0:
                continue
            part = features[rows]
            hidden = nn.functional.linear(part, up_weight, None if up_biases is None else up_biases[expert])
            hidden = (
                self.act(hidden) if gates is None else self.act(nn.functional.linear(part, gates[expert])) * hidden
            )
            hidden = hidden * weights[rows, expert, None, None]  # [n, S, I]
            mixture = mixture.index_add(0, rows, nn.functional.linear(hidden, downs[expert]))
        return mixture

    def _can_slice(self) -> bool:
        """Whether few experts are active and their layers are plain, so that an expert's weights can be cut out of them."""
        if self.num_active == self.num_experts or torch.compiler.is_compiling():
            return False
        return all(map(is_plain_linear, filter(None, (self.gate_proj, self.up_proj, self.down_proj))))


class _SwiGLUMixture(torch.autograd.Function):
    """`_mix_hidden` of SwiGLU experts, in place where it can be: most of its time is memory that autograd would allocate."""

    @staticmethod
    def forward(ctx, gate, up, weights, down):
        ctx.save_for_backward(gate, up, weights, down)
        hidden = nn.functional.silu(gate).mul_(up)
        _by_expert(hidden, weights).mul_(weights[:, None, :, None])
        return nn.functional.linear(hidden, down.to(hidden.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        gate, up, weights, down = ctx.saved_tensors
        _, _, for_weights, for_down = ctx.needs_input_grad  # frozen experts, forced weights
        grad_weights = grad_down = None
        active = nn.functional.silu(gate)
        grad_hidden = grad @ down.to(grad.dtype)  # [N, S, E * I]
        if for_weights or for_down:
            hidden = active * up
            if for_weights:
                grad_weights = _by_expert(grad_hidden * hidden, weights).sum((1, 3), dtype=weights.dtype)
            if for_down:
                _by_expert(hidden, weights).mul_(weights[:, None, :, None])
                grad_down = (grad.flatten(0, 1).T @ hidden.flatten(0, 1)).to(down.dtype)
        _by_expert(grad_hidden, weights).mul_(weights[:, None, :, None])
        grad_up = active.mul_(grad_hidden)
        grad_gate = torch.ops.aten.silu_backward(grad_hidden.mul_(up), gate)
        return grad_gate, grad_up, grad_weights, grad_down


def _by_expert(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A view [N, S, E, I] of [N, S, E * I]."""
    return hidden.unflatten(-1, (weights.shape[-1], -1))


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a layer is one product whose weights are all here: no LoRA, not quantised, sharded or offloaded."""
    # torchao quantises and FSDP shards the weight inside a plain layer: a tensor of another class. ZeRO-3 marks it.
    # accelerate puts a forward of its own into a layer whose weights it brings from elsewhere.
    return (
        type(layer) in (nn.Linear, ParrotExpertOutput)
        and type(layer.weight) in (nn.Parameter, torch.Tensor)
        and not hasattr(layer.weight, "ds_id")
        and "forward" not in vars(layer)
    )


__all__ = ["ParrotLanguageExperts", "ParrotMultiModalProjector", "is_plain_linear"]
