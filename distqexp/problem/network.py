"""A module with its trainable parameters laid out as one flat vector."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call

from distqexp.arrays import FloatArray
from distqexp.errors import FileContentError, UsageError
from distqexp.problem.admission import admit
from distqexp.problem.huggingface import adapt
from distqexp.problem.losses import Loss
from distqexp.problem.mixed import Mixed, widened
from distqexp.problem.pages import PrivatePages, in_pages
from distqexp.problem.sealing import Seal
from distqexp.problem.tensor_states import same_bits

_RECORDS_AT_ONCE = 512

A = TypeVar("A", torch.Tensor, FloatArray)


class Network:
    """A torch module in evaluation mode; theta (d,) is the concatenation of its trainable parameters.

    ``trainable`` has fnmatch patterns of parameter names; the order of the parameters is the module's own. All others are frozen
    and get no gradient, as are those that the factory froze (``requires_grad=False``), unless a pattern matches these alone and is
    not "*". A module that couples the records of a batch is refused, for then a unit's gradient would depend on its
    neighbours. A module that returns an object with ``logits`` is used by them, and Hugging Face models take records as they are
    (``problem.huggingface.adapt``). Wrappers are taken off (``problem.admission``). Public: the parameters are those of a release.

    With ``mixed`` every forward pass runs under torch.autocast to that type. Trainable parameters are then float32 at least, and so are
    the outputs; frozen ones keep their own type.

    Attributes:
        module: the module, in evaluation mode.
        frozen_by_factory: the names of the parameters that the factory froze, and that stay so.
        one_by_one: why torch.func can't differentiate the module, so that records are taken one at a time; None where it can, or
            where nobody has tried yet.
        inputs_need_gradients: whether inputs must have a gradient for all of the module to be differentiated.
        separate: whether ``call`` takes records one at a time, as the last bits of a record's outputs depend on the batch.
    """

    def __init__(
        self,
        module: nn.Module,
        trainable: Sequence[str] = ("*",),
        device: str | torch.device = "cpu",
        mixed: Mixed | None = None,
    ) -> None:
        module = admit(module)
        self.device = torch.device(device)
        placed = all(tensor.device == self.device for tensor in chain(module.parameters(), module.buffers()))
        self.module = (module if placed else module.to(device)).eval()  # tensors without memory can't be moved
        adapt(module)
        self.mixed = mixed
        self.one_by_one: str | None = None
        self.inputs_need_gradients = False
        self.separate = False
        self._seal = Seal(module)
        self._scripted = any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())
        _refuse_coupling(module)
        self._parameters: dict[str, nn.Parameter] = {}
        named = dict(module.named_parameters())
        names, chosen_names = list(named), _chosen(named, trainable)
        self.frozen_by_factory = tuple(
            name for name in names if name not in chosen_names and not named[name].requires_grad
        )
        for name, parameter in named.items():
            chosen = name in chosen_names
            if chosen and not parameter.is_floating_point():
                raise UsageError(f"model.trainable: {name} is {parameter.dtype}; expected floating point; leave it out")
            parameter.requires_grad_(chosen)
            if chosen:
                if mixed is not None:
                    parameter.data = widened(parameter.data)
                self._parameters[name] = parameter
        if not self._parameters:
            left = " that the factory left trainable (requires_grad)" if self.frozen_by_factory else ""
            raise UsageError(
                f"model.trainable: {list(trainable)} match no parameter{left}; expected patterns of {', '.join(names[:8])}"
                f"{', ...' if len(names) > 8 else ''}"
            )
        dtypes = {parameter.dtype for parameter in self._parameters.values()}
        if len(dtypes) != 1:
            raise UsageError(f"model.trainable: parameters of {sorted(map(str, dtypes))}; expected one type")
        self.dtype: torch.dtype = dtypes.pop()

    @property
    def d(self) -> int:
        """The number of trainable parameters."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def names_shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The name and shape of every trainable parameter, in the order of theta."""
        return tuple((name, tuple(parameter.shape)) for name, parameter in self._parameters.items())

    @property
    def trainable_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the order of theta."""
        return list(self._parameters.values())

    def blank_row(self) -> torch.Tensor:
        """Return a gradient of zeros, (d,)."""
        return torch.zeros(self.d, dtype=self.dtype, device=self.device)

    def trainable_tensors(self) -> dict[str, torch.Tensor]:
        """Return the trainable parameters, detached, by name, in the order of theta."""
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def theta(self) -> FloatArray:
        """Return a copy of the trainable parameters, float64 (d,)."""
        theta = np.empty(self.d)
        for name, part in self.split(torch.from_numpy(theta)).items():
            part.copy_(self._parameters[name].detach())
        return theta

    def load(self, theta: FloatArray) -> None:
        """Set the trainable parameters from theta (d,), rounded to the module's own type.

        Callers must not write into the array afterwards: it serves as the copy that passes are undone from.
        """
        with torch.no_grad():
            for name, values in self.split(np.asarray(theta, dtype=np.float64)).items():
                parameter, rounded = self._parameters[name], torch.from_numpy(np.array(values)).to(self.dtype)
                if not same_bits(parameter, rounded.to(self.device)):
                    parameter.copy_(rounded)
                self._seal.came_from(parameter, values)

    def split(self, theta: A) -> dict[str, A]:
        """Return views of theta (d,) with the names and shapes of the trainable parameters."""
        if theta.shape != (self.d,):
            raise UsageError(f"theta: found shape {tuple(theta.shape)}; expected ({self.d},), the trainable parameters")
        tensors: dict[str, A] = {}
        at = 0
        for name, shape in self.names_shapes:
            size = math.prod(shape)
            tensors[name] = theta[at : at + size].reshape(shape)
            at += size
        return tensors

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of all parameters and persistent buffers, by name (bfloat16 is widened to float32, exactly).

        Large ones lie where a module that is given them has the same pages (``problem.pages``).
        """

        def values(tensor: torch.Tensor) -> NDArray[Any]:
            there = tensor.detach().cpu()
            return (there.float() if there.dtype == torch.bfloat16 else there).numpy()

        return in_pages({name: values(tensor) for name, tensor in self.module.state_dict().items()})

    def state_at(self, weights: Mapping[str, NDArray[Any]], theta: FloatArray) -> dict[str, NDArray[Any]]:
        """Return what ``state`` gives at these weights with the trainable parameters at theta (d,).

        It follows from the arguments, and from the names and types of the module's tensors alone: records that the module has seen have
        no part in it. Arrays that are as in ``weights`` are those themselves.
        """
        own = self.module.state_dict()
        arrays = {name: weights[name] for name in own}
        for name, values in self.split(torch.from_numpy(np.array(theta, dtype=np.float64))).items():
            rounded = values.to(self.dtype)
            arrays[name] = (rounded.float() if rounded.dtype == torch.bfloat16 else rounded).numpy().copy()
        for names in _shared(own):
            first = next((name for name in names if name in self._parameters), names[0])
            arrays |= dict.fromkeys(names, arrays[first])
        return arrays

    def load_state(self, state: Mapping[str, NDArray[Any] | torch.Tensor]) -> None:
        """Set all parameters and buffers. Raises FileContentError unless names and shapes are the module's own.

        Callers must not write into arrays that they have passed: they serve as the copy that passes are undone from. Of names that share
        one tensor (tied parameters) one is enough; where several are there, they must agree.
        """
        own = self.module.state_dict(keep_vars=True)
        state = _with_shared(own, state)
        missing, unexpected = sorted(set(own) - set(state)), sorted(set(state) - set(own))
        if missing or unexpected:
            raise FileContentError(
                f"model state: missing {_some(missing)}, unexpected {_some(unexpected)}; "
                "expected the parameters and buffers of the configured model"
            )
        for name, tensor in own.items():
            if tuple(state[name].shape) != tuple(tensor.shape):
                raise FileContentError(
                    f"model state: {name} has shape {tuple(state[name].shape)}; expected {tuple(tensor.shape)}, "
                    "as the configured model has it"
                )
        pages = PrivatePages()
        self._seal.forget()
        with torch.no_grad():
            for name, tensor in own.items():
                values = state[name]
                if self._scripted or not pages.give(tensor, values):
                    tensor.copy_(torch.as_tensor(np.array(values) if isinstance(values, np.ndarray) else values))
                self._seal.came_from(tensor, values)

    @contextmanager
    def sealed(self, loss: Loss | None = None) -> Iterator[None]:
        """Every pass of records is inside: what it changes in the module, or the loss, is put back, so that no record meets another."""
        with self._seal.kept(), nullcontext() if loss is None else loss.kept():
            yield

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Inside a pass: the module is inside as it was before the pass, and afterwards as the pass had left it."""
        with self._seal.anew():
            yield

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs on the network's device; floating-point ones in the type of the parameters."""
        return inputs.to(self.device, self.dtype if inputs.is_floating_point() else None)

    def outputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, C) of (n, ...) on the CPU, without gradients, computed some records at a time."""
        self._seal.renew()
        with torch.no_grad():
            parts = [self.call(part).cpu() for part in torch.split(inputs, _RECORDS_AT_ONCE)]
        return torch.cat(parts)

    def call(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs (n, C) of (n, ...), on the network's device, so that each record's are its own to the last bit."""
        return torch.cat([self._pass(part) for part in torch.split(inputs, 1)]) if self.separate else self._pass(inputs)

    def _pass(self, inputs: torch.Tensor) -> torch.Tensor:
        with self.sealed():
            return cast(torch.Tensor, self.forward(self.prepare(inputs)))

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, operations are in the types of the network's forward pass; without ``mixed`` in those of their arguments."""
        return nullcontext() if self.mixed is None else self.mixed.autocast(self.device)

    def forward(self, inputs: torch.Tensor) -> Any:
        """Return what the module gives for prepared inputs (n, ...): outputs (n, C), unless the module is not one that can be used."""
        with self.autocast():
            outputs = self.module(inputs)
        return outputs if self.mixed is None else widened(outputs)

    def functional(self, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return the outputs with some parameters replaced, for torch.func; ``inputs`` has a batch dimension."""
        with self.autocast():
            outputs = functional_call(self.module, dict(parameters), (inputs,))
        return cast(torch.Tensor, outputs if self.mixed is None else widened(outputs))


def described_parameters(network: Network) -> str:
    """Return a line that says which parameters are trained, and which the factory froze."""
    total = sum(parameter.numel() for parameter in network.module.parameters())
    trained = [name for name, _ in network.names_shapes]
    line = f"trained: {network.d:,} of {total:,} parameters: {_some(trained, 12)}"
    if network.frozen_by_factory:
        line += f"; frozen by the factory: {_some(list(network.frozen_by_factory), 6)}"
    return line


def _chosen(parameters: Mapping[str, nn.Parameter], patterns: Sequence[str]) -> set[str]:
    """Return the names that the patterns choose; a pattern leaves alone what the factory froze, unless it means nothing else."""
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {name for name in parameters if fnmatch.fnmatchcase(name, pattern)}
        active = {name for name in matches if parameters[name].requires_grad}
        chosen |= active if active or pattern == "*" else matches
    return chosen


def _refuse_coupling(module: nn.Module) -> None:
    for name, part in module.named_modules():
        normalises = isinstance(part, nn.modules.batchnorm._NormBase) and not isinstance(
            part, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
        )
        if normalises and part.running_mean is None:
            raise UsageError(
                f"model: {name or 'the module'} is {type(part).__name__} without running statistics, which couples the "
                "records of a batch; expected track_running_stats=True, or a layer or group normalisation"
            )


def _with_shared(
    own: Mapping[str, torch.Tensor], state: Mapping[str, NDArray[Any] | torch.Tensor]
) -> Mapping[str, NDArray[Any] | torch.Tensor]:
    """Return ``state`` with every name of a shared tensor that it has one name of."""
    complete = dict(state)
    for names in _shared(own):
        present = [name for name in names if name in state]
        if not present:
            continue
        first = state[present[0]]
        for name in present[1:]:
            if not torch.equal(torch.as_tensor(first), torch.as_tensor(state[name])):
                raise FileContentError(
                    f"model state: {present[0]} and {name} differ; expected one tensor, which they share in the configured model"
                )
        complete |= dict.fromkeys(names, first)
    return complete


def _shared(own: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the groups of names that share one tensor."""
    groups: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, tensor in own.items():
        if tensor.numel():
            groups.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "none" if not names else ", ".join(names[:most]) + more
