"""Family attention on a CPU: PyTorch's flash kernel on exactly the pairs of tokens that attend to each other.

A branch attends to its prefix without a mask and to itself causally. Both parts are computed separately, each with the
logarithm of its softmax's denominator. They are merged as if one softmax had covered both. All branches of a family
attend to the prefix in one call. The kernel's backward pass, given the *merged* output and denominator, yields each
part's share of the exact gradient. So nothing is masked, concatenated or repeated. Shared key-value heads are views.

N = key-value heads, G = query heads per key-value head, T = tokens, E = head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wrpo_engine.training.batch.layout import Family

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # noqa: SLF001
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default  # noqa: SLF001


def family_attention_cpu(
    query_1HTE: Tensor, key_1NTE: Tensor, value_1NTE: Tensor, families: tuple[Family, ...], scale: float
) -> Tensor:
    """Return the attention output [1, T, H, E]; `scale` multiplies the scores."""
    apply: Any = _FamilyAttention.apply
    output: Tensor = apply(query_1HTE, key_1NTE, value_1NTE, families, scale)
    return output


def _by_group(tensor_1HTE: Tensor, num_key_value_heads: int) -> Tensor:
    _, heads, tokens, size = tensor_1HTE.shape
    return tensor_1HTE.view(num_key_value_heads, heads // num_key_value_heads, tokens, size)


class _FamilyAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - signature of torch.autograd.Function
        ctx: Any,
        query_1HTE: Tensor,
        key_1NTE: Tensor,
        value_1NTE: Tensor,
        families: tuple[Family, ...],
        scale: float,
    ) -> Tensor:
        _, heads, tokens, size = query_1HTE.shape
        shared = key_1NTE.shape[1]
        query = _by_group(query_1HTE, shared)
        key, value = (tensor[0][:, None].expand_as(query) for tensor in (key_1NTE, value_1NTE))
        output_1THE = query_1HTE.new_empty(1, tokens, heads, size)
        output = _by_group(output_1THE.transpose(1, 2), shared)
        accumulator = torch.promote_types(query.dtype, torch.float32)
        # The layout in which the kernel writes: [N, T, G] in memory, viewed as [N, G, T].
        normalizers = query.new_empty(shared, tokens, heads // shared, dtype=accumulator).transpose(1, 2)

        for family in families:
            first = slice(*family.prefix)
            output[:, :, first], normalizers[:, :, first] = _forward(
                query[:, :, first], key[:, :, first], value[:, :, first], 0.0, True, scale=scale
            )
            if not family.branches:
                continue
            rest = slice(family.prefix[1], family.stop)
            prefix_output, prefix_normalizers = _forward(
                query[:, :, rest], key[:, :, first], value[:, :, first], 0.0, False, scale=scale
            )
            for start, stop in family.branches:
                own = slice(start, stop)
                there = slice(start - rest.start, stop - rest.start)
                own_output, own_normalizers = _forward(
                    query[:, :, own], key[:, :, own], value[:, :, own], 0.0, True, scale=scale
                )
                # softmax over both = own * w + prefix * (1 - w) with w = sigmoid(own normalizer - prefix normalizer).
                weight = torch.sigmoid(own_normalizers - prefix_normalizers[:, :, there])[..., None]
                output[:, :, own] = torch.lerp(
                    prefix_output[:, :, there].to(accumulator), own_output.to(accumulator), weight
                )
                normalizers[:, :, own] = torch.logaddexp(own_normalizers, prefix_normalizers[:, :, there])

        ctx.save_for_backward(query_1HTE, key_1NTE, value_1NTE, output_1THE, normalizers)
        ctx.families, ctx.scale = families, scale
        return output_1THE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output_1THE: Tensor) -> tuple[Tensor | None, ...]:
        query_1HTE, key_1NTE, value_1NTE, output_1THE, normalizers = ctx.saved_tensors
        _, heads, tokens, size = query_1HTE.shape
        shared = key_1NTE.shape[1]
        query = _by_group(query_1HTE, shared)
        key, value = (tensor[0][:, None].expand_as(query) for tensor in (key_1NTE, value_1NTE))
        output = _by_group(output_1THE.transpose(1, 2), shared)
        grad_output = _by_group(grad_output_1THE.transpose(1, 2), shared)
        grad_query_1THE = query.new_empty(1, tokens, heads, size)
        grad_key_TNE, grad_value_TNE = (query.new_empty(tokens, shared, size) for _ in range(2))
        grad_query = _by_group(grad_query_1THE.transpose(1, 2), shared)
        grad_key, grad_value = grad_key_TNE.transpose(0, 1), grad_value_TNE.transpose(0, 1)

        def gradients(queries: slice, keys: slice, *, is_causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            for_query, for_key, for_value = _backward(
                grad_output[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                output[:, :, queries],
                normalizers[:, :, queries],
                0.0,
                is_causal,
                scale=ctx.scale,
            )
            return for_query, for_key.sum(dim=1), for_value.sum(dim=1)

        for family in ctx.families:
            first = slice(*family.prefix)
            grad_query[:, :, first], grad_key[:, first], grad_value[:, first] = gradients(first, first, is_causal=True)
            if not family.branches:
                continue
            rest = slice(family.prefix[1], family.stop)
            grad_query[:, :, rest], for_key, for_value = gradients(rest, first, is_causal=False)
            grad_key[:, first] += for_key
            grad_value[:, first] += for_value
            for start, stop in family.branches:
                own = slice(start, stop)
                for_query, grad_key[:, own], grad_value[:, own] = gradients(own, own, is_causal=True)
                grad_query[:, :, own] += for_query
        return grad_query_1THE.transpose(1, 2), grad_key[None], grad_value[None], None, None
