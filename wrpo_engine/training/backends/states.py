"""What one rank holds of weights and moments: all of it, or the partitions of DeepSpeed's ZeRO stages.

With compact moments (`CompactAdamW`) the optimizer itself reads and writes them in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from wrpo_engine.training.backends.base import MOMENTS, ReadTensor, TensorKind
from wrpo_engine.training.backends.compact_adamw import CompactAdamW
from wrpo_engine.training.backends.gathering import PartialState, Piece, Span


class ReplicatedState(PartialState):
    """Whole parameters and their optimizer state."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self._optimizer, self._parameters = optimizer, parameters

    @override
    def size(self, name: str) -> int:
        return self._parameters[name].numel()

    @override
    def spans(self) -> Mapping[str, Span]:
        return {name: (0, parameter.numel()) for name, parameter in self._parameters.items()}

    @override
    def read(self, piece: Piece) -> Tensor:
        parameter, kind = self._parameters[piece.item.name].detach(), piece.item.kind
        if kind is not TensorKind.WEIGHT and isinstance(self._optimizer, CompactAdamW):
            return self._optimizer.read(self._parameters[piece.item.name], kind.value, piece.start, piece.stop)
        if kind is not TensorKind.WEIGHT:
            parameter = self._optimizer.state[self._parameters[piece.item.name]][kind.value]
        return parameter.reshape(-1)[piece.start : piece.stop]

    @torch.no_grad()
    def restore(self, num_steps_done: int, read: ReadTensor) -> None:
        """Restore parameters and their optimizer state."""
        for name, parameter in self._parameters.items():
            parameter.copy_(read(name, TensorKind.WEIGHT))
            if isinstance(self._optimizer, CompactAdamW):
                self._optimizer.make_state(parameter, num_steps_done)
                for kind in MOMENTS:
                    self._optimizer.write(parameter, kind.value, read(name, kind).view(-1))
                continue
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(num_steps_done), device=parameter.device),
                **{kind.value: read(name, kind).to(parameter.device, parameter.dtype) for kind in MOMENTS},
            }


class Fragment(NamedTuple):
    """The part of a parameter that a rank holds, and its place in a flat partition."""

    partition: int
    """Index of the flat partition."""
    offset: int
    """First element in the partition."""
    span: Span
    """Elements of the flattened parameter."""


class PartitionedState(PartialState):
    """Flat fp32 partitions of parameters and moments: what the ZeRO stages have in common."""

    def __init__(self, zero: Any, parameters: Mapping[str, Any]) -> None:
        self._zero, self._parameters = zero, parameters
        self._fragments = dict(self._find_fragments())

    def _partitions(self) -> list[Tensor]:
        raise NotImplementedError

    def _find_fragments(self) -> Iterator[tuple[str, Fragment]]:
        raise NotImplementedError

    def _moment(self, name: str, kind: TensorKind) -> Tensor:
        """Return this rank's fragment of a moment that is stored in fp32."""
        raise NotImplementedError

    def _weight(self, name: str) -> Tensor:
        """Return this rank's fragment of a master weight."""
        raise NotImplementedError

    @override
    def spans(self) -> Mapping[str, Span]:
        return {name: fragment.span for name, fragment in self._fragments.items()}

    @override
    def read(self, piece: Piece) -> Tensor:
        name, kind = piece.item
        fragment, optimizer = self._fragments[name], self._zero.optimizer
        start, stop = (bound - fragment.span[0] for bound in (piece.start, piece.stop))
        if kind is TensorKind.WEIGHT:
            return self._weight(name)[start:stop].detach()
        if isinstance(optimizer, CompactAdamW):
            flat = self._partitions()[fragment.partition]
            return optimizer.read(flat, kind.value, fragment.offset + start, fragment.offset + stop)
        return self._moment(name, kind)[start:stop].detach()

    def make_state(self, num_steps_done: int) -> None:
        """Create the optimizer's state after a number of steps, with moments of zero."""
        optimizer = self._zero.optimizer
        for flat in self._partitions():
            if isinstance(optimizer, CompactAdamW):
                optimizer.make_state(flat, num_steps_done)
                continue
            optimizer.state[flat] = {
                "step": torch.tensor(float(num_steps_done), device=flat.device),
                **{kind.value: torch.zeros_like(flat, requires_grad=False) for kind in MOMENTS},
            }

    def restore_compact_moments(self, read: ReadTensor) -> bool:
        """Write compact moments, one flat partition at a time; return whether the optimizer has such moments."""
        optimizer = self._zero.optimizer
        if not isinstance(optimizer, CompactAdamW):
            return False
        for index, flat in enumerate(self._partitions()):
            for kind in MOMENTS:
                values = torch.zeros(flat.numel(), dtype=torch.float32)
                for name, (partition, offset, (start, stop)) in self._fragments.items():
                    if partition == index:
                        values[offset : offset + stop - start] = read(name, kind, (start, stop))
                optimizer.write(flat, kind.value, values)
        return True


class Zero12State(PartitionedState):
    """ZeRO stages 1 and 2: a rank's partition cuts through the parameters of a group."""

    @override
    def size(self, name: str) -> int:
        return int(self._parameters[name].numel())

    def _partitions(self) -> list[Tensor]:
        # In bf16 with fp32 gradients stage 1 uses another optimizer, with another name for the same partitions.
        name = "single_partition_of_fp32_groups"
        found: list[Tensor] = getattr(self._zero, name if hasattr(self._zero, name) else "fp32_groups_flat_partition")
        return found

    def _find_fragments(self) -> Iterator[tuple[str, Fragment]]:
        for name, parameter in self._parameters.items():
            mapping = parameter._hp_mapping  # noqa: SLF001 (as deepspeed.utils.safe_* do)
            if mapping is not None:
                own, place = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield name, Fragment(mapping.param_group_index, place.start, (own.start, own.start + own.numel))

    def _weight(self, name: str) -> Tensor:
        fragment: Tensor = self._parameters[name]._hp_mapping.hp_fragment  # noqa: SLF001
        return fragment

    def _moment(self, name: str, kind: TensorKind) -> Tensor:
        fragment: Tensor = self._parameters[name]._hp_mapping.get_optim_state_fragment(kind.value)  # noqa: SLF001
        return fragment

    def restore(self, num_steps_done: int, read: ReadTensor) -> None:
        """Restore weights, master weights and moments."""
        self.make_state(num_steps_done)
        # DeepSpeed otherwise maps parameters to their slices of the optimizer state only at the end of the first step.
        self._zero._lazy_init_hp_params_optimizer_state()  # noqa: SLF001
        is_compact = self.restore_compact_moments(read)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                weight = read(name, TensorKind.WEIGHT)
                parameter.copy_(weight)
                if name not in self._fragments:
                    continue
                span = self._fragments[name].span
                self._weight(name).copy_(weight.view(-1)[slice(*span)])
                for kind in () if is_compact else MOMENTS:
                    self._moment(name, kind).copy_(read(name, kind, span))


class Zero3State(PartitionedState):
    """ZeRO stage 3: every parameter is cut into equal slices, of which the last one is padded."""

    def __init__(self, zero: Any, parameters: Mapping[str, Any], rank: int) -> None:
        self._rank = rank
        super().__init__(zero, parameters)

    @override
    def size(self, name: str) -> int:
        return int(self._parameters[name].ds_numel)

    def _partitions(self) -> list[Tensor]:
        found: list[Tensor] = self._zero.fp32_partitioned_groups_flat
        return found

    def _find_fragments(self) -> Iterator[tuple[str, Fragment]]:
        for name, parameter in self._parameters.items():
            size, total = parameter.partition_numel(), parameter.ds_numel
            start = min(size * self._rank, total)
            partition, offset, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
            yield name, Fragment(partition, offset, (start, min(start + size, total)))

    def _weight(self, name: str) -> Tensor:
        return self._fp32(name, None)

    def _moment(self, name: str, kind: TensorKind) -> Tensor:
        return self._fp32(name, kind.value)

    def _fp32(self, name: str, key: str | None) -> Tensor:
        values: Tensor
        values, partition = self._zero._get_fp32_opt_state_partition(  # noqa: SLF001
            self._parameters[name], release_swap_buffers=True, optim_state_key=key
        )
        # The buffer of a partition on a disk is used again for the next one.
        on_disk = self._zero._swappable_optimizer_subgroup(partition)  # noqa: SLF001
        return values.clone() if on_disk else values

    def restore_moments(self, num_steps_done: int, read: ReadTensor) -> None:
        """Restore master weights and moments; the weights of the model itself are not changed."""
        self.make_state(num_steps_done)
        kinds = [TensorKind.WEIGHT] if self.restore_compact_moments(read) else list(TensorKind)
        for name, parameter in self._parameters.items():
            start, stop = self._fragments[name].span
            for kind in kinds:
                values = torch.zeros(parameter.partition_numel(), dtype=torch.float32)
                values[: stop - start] = read(name, kind, (start, stop))
                key = None if kind is TensorKind.WEIGHT else kind.value
                self._zero.set_local_hp_param(values, parameter, key)
