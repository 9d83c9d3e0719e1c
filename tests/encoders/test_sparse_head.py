"""The fused head: SpladePooling's outputs and gradients, whatever the blocks, and never the logits."""

import pytest
import torch
from sentence_transformers.sparse_encoder.modules import SpladePooling
from torch.utils._python_dispatch import TorchDispatchMode

from ltrr.encoders import sparse_head
from ltrr.encoders.sparse_head import splade_max

B, L, H, V = 5, 12, 16, 300


def batch(dtype=torch.float32, seed=0):
    """hidden, decoder, bias (a few per cent of the terms are active), mask with padding left, right and within."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(B, L, H, generator=random).to(dtype).requires_grad_()
    decoder = (torch.randn(V, H, generator=random) * H**-0.5).requires_grad_()
    bias = (torch.randn(V, generator=random) * 0.1 - 2.5).requires_grad_()
    mask = torch.ones(B, L, dtype=torch.long)
    mask[0, 7:] = mask[1, :5] = mask[2, 3] = mask[3, 1:] = 0
    return hidden, decoder, bias, mask


def pooled(hidden, decoder, bias, mask):
    logits = torch.nn.functional.linear(hidden, decoder, bias)
    return SpladePooling("max").train()({"token_embeddings": logits, "attention_mask": mask})["sentence_embedding"]


def gradients(head, inputs):
    """Of a weighted sum whose weights have both signs, as a ranking loss gives them."""
    weights = torch.randn(B, V, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((head(*inputs) * weights).sum(), inputs[:3])


@pytest.mark.parametrize("block", [(1024, 2048), (20, 64), (1, 299)], ids=["one block", "many", "a document each"])
def test_equals_splade_pooling(monkeypatch, block):
    monkeypatch.setitem(sparse_head._BLOCK, "cpu", block)
    inputs = batch()
    ours, theirs = splade_max(*inputs), pooled(*inputs)
    assert 0.01 < (theirs > 0).float().mean() < 0.3
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for own, reference in zip(gradients(splade_max, inputs), gradients(pooled, inputs), strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-6)


def test_under_autocast_products_are_bfloat16_and_the_rest_float32():
    inputs = batch()
    with torch.autocast("cpu", torch.bfloat16):
        ours = splade_max(*inputs)
        own = gradients(splade_max, inputs)
    hidden, decoder, bias, mask = inputs
    products = (hidden.bfloat16() @ decoder.bfloat16().T).float() + bias  # (B, L, V)
    expected = products.masked_fill(mask[:, :, None] == 0, 0).relu().amax(1).log1p()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected)
    for value, reference in zip(own, gradients(pooled, inputs), strict=True):
        assert value.dtype == torch.float32
        assert torch.cosine_similarity(value.flatten(), reference.flatten(), dim=0) > 0.99


def test_half_precision_inputs_get_gradients_of_their_own_type():
    hidden, decoder, bias, mask = batch(torch.bfloat16)
    inputs = (hidden, decoder.detach().bfloat16().requires_grad_(), bias, mask)
    assert splade_max(*inputs).dtype == torch.float32
    assert [g.dtype for g in gradients(splade_max, inputs)] == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_no_gradient_is_kept_where_none_is_asked():
    with torch.inference_mode():
        assert splade_max(*batch()).grad_fn is None
    hidden, decoder, bias, mask = batch()
    out = splade_max(hidden, decoder.detach(), bias.detach(), mask)
    (alone,) = torch.autograd.grad(out.sum(), [hidden])
    torch.testing.assert_close(alone, torch.autograd.grad(pooled(hidden, decoder, bias, mask).sum(), [hidden])[0])


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.num = max(self.num, tensor.numel())
        return out


def test_the_logits_are_never_stored(monkeypatch):
    monkeypatch.setitem(sparse_head._BLOCK, "cpu", (20, 64))
    inputs = batch()
    with Largest() as plain:
        gradients(pooled, inputs)
    with Largest() as fused:
        gradients(splade_max, inputs)
    assert plain.num == B * L * V
    assert fused.num == V * H  # the decoder's gradient
