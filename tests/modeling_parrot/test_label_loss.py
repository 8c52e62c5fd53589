"""The loss in pieces is the plain cross-entropy of all logits: value, gradients, and how it is divided."""

import pytest
import torch
from torch import nn

from modeling_parrot import label_loss_parrot
from modeling_parrot.label_loss_parrot import label_loss


def problem(dtype=torch.float32, rows=13, width=16, vocabulary=40):
    torch.manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False).to(dtype)
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    return hidden, head, torch.randint(0, vocabulary, (rows,))


def plain(hidden, head, labels, count):
    return nn.functional.cross_entropy(head(hidden).float(), labels, reduction="sum") / count


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize("logits", [40, 3 * 40, 10_000])  # one row at a time, three, all
@pytest.mark.parametrize("count", [None, 29])
def test_value_and_gradients_are_those_of_all_logits(monkeypatch, logits, count):
    monkeypatch.setattr(label_loss_parrot, "CHUNK", logits)
    hidden, head, labels = problem()
    found, wanted = label_loss(hidden, head, labels, count), plain(hidden, head, labels, count or len(labels))
    torch.testing.assert_close(found, wanted)
    for one, other in zip(
        gradients(3 * found, hidden, head.weight), gradients(3 * wanted, hidden, head.weight), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_logits_in_half_precision_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(label_loss_parrot, "CHUNK", 5 * 40)
    hidden, head, labels = problem(torch.bfloat16)
    found, wanted = label_loss(hidden, head, labels), plain(hidden, head, labels, len(labels))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    (one,), (other,) = gradients(found, hidden), gradients(wanted, hidden)
    torch.testing.assert_close(one, other, rtol=0.02, atol=2e-3)


def test_under_autocast_it_is_what_autocast_makes_of_the_plain_loss():
    hidden, head, labels = problem()
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = label_loss(hidden, head, labels), plain(hidden, head, labels, len(labels))
    torch.testing.assert_close(found, wanted)
    pairs = zip(gradients(found, hidden, head.weight), gradients(wanted, hidden, head.weight), strict=True)
    for one, other in pairs:
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=2e-3)


def test_micro_batches_with_unequal_numbers_of_labels_add_up_to_the_whole():
    hidden, head, labels = problem()
    whole = gradients(label_loss(hidden, head, labels, len(labels)), head.weight)[0]
    parts = [label_loss(hidden[part], head, labels[part], len(labels)) for part in (slice(0, 3), slice(3, 13))]
    torch.testing.assert_close(gradients(sum(parts), head.weight)[0], whole)


def test_a_frozen_head_gets_no_gradient_and_no_labels_no_loss():
    hidden, head, labels = problem()
    head.requires_grad_(False)
    label_loss(hidden, head, labels).backward()
    assert head.weight.grad is None and hidden.grad.abs().sum() > 0
    assert label_loss(hidden[:0], head, labels[:0]).item() == 0


def test_never_more_logits_than_a_piece(monkeypatch):
    monkeypatch.setattr(label_loss_parrot, "CHUNK", 2 * 40)
    seen = []
    linear = nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *call: seen.append(linear(*call)) or seen[-1])
    label_loss(*problem())
    assert len(seen) == 7 and max(logits.numel() for logits in seen) == 2 * 40


def test_a_second_backward_pass_is_refused():
    hidden, head, labels = problem()
    loss = label_loss(hidden, head, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        loss.backward()


class Wrapped(nn.Linear):
    pass


@pytest.mark.parametrize("head", [Wrapped(4, 6, bias=False), nn.Linear(4, 6), nn.Sequential(nn.Linear(4, 6))])
def test_heads_that_are_more_than_one_product_are_left_to_themselves(head):
    assert label_loss(torch.randn(2, 4), head, torch.tensor([1, 2])) is None
