"""A perceptron's forward and backward pass, written out, in buffers that are used again.

Autograd would keep the input of an ELU beside its output and allocate both anew in every mini-batch. Here an
activation whose slope follows from its output works in place; the others go through autograd one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from rsl_rl.algorithms import PPO

aten = torch.ops.aten

Slope = Callable[[Tensor, Tensor], Tensor]
"""Takes the gradient of an activation's output and that output; turns the former, in place, into its input's."""

IN_PLACE: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Slope]] = {
    nn.ELU: (
        functional.elu_,
        lambda gradient, output: aten.elu_backward.grad_input(gradient, 1, 1, 1, True, output, grad_input=gradient),
    ),
    nn.ReLU: (
        functional.relu_,
        lambda gradient, output: aten.threshold_backward.grad_input(gradient, output, 0, grad_input=gradient),
    ),
    nn.Sigmoid: (
        torch.sigmoid_,
        lambda gradient, output: aten.sigmoid_backward.grad_input(gradient, output, grad_input=gradient),
    ),
    nn.Tanh: (
        torch.tanh_,
        lambda gradient, output: aten.tanh_backward.grad_input(gradient, output, grad_input=gradient),
    ),
}


class Perceptron:
    """Linear layers with one activation between them. Gradients are written into the parameters' own `.grad`.

    With bfloat16 the hidden layers and the gradients of their outputs have that precision, as in torch's autocast; the
    last layer, the parameters and their gradients stay in float32.
    """

    def __init__(self, layers: nn.Sequential, rows: int, dtype: torch.dtype) -> None:
        """`rows`: at most so many inputs at a time. `dtype`: of the hidden layers."""
        self._rows, self._dtype = rows, dtype
        self._take(layers)
        new = self._last.weight.new_empty
        shapes = [(rows, layer.out_features) for layer in self._hidden_layers]
        self._hidden = [new(shape, dtype=dtype, requires_grad=False) for shape in shapes]
        self._gradients = [new(shape, dtype=dtype, requires_grad=False) for shape in shapes[:-1]]
        self._ones = self._last.weight.new_ones((1, rows), requires_grad=False)
        self._inputs: list[Tensor] = []  # of every layer, the last forward pass's
        self._graphs: list[tuple[Tensor, Tensor]] = []  # input and output of each activation that is not in place

    def in_its_buffers(self, layers: nn.Sequential) -> Perceptron:
        """Another one, of layers of the same sizes. It may not be used between this one's two passes."""
        other = copy.copy(self)
        other._take(layers)
        return other

    def _take(self, layers: nn.Sequential) -> None:
        *self._hidden_layers, self._last = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._activation = layers[1]
        self._parameters = [parameter for layer in self._hidden_layers for parameter in (layer.weight, layer.bias)]
        self._cast = self._parameters  # the hidden layers' parameters, as they are multiplied
        if self._dtype != torch.float32:
            self._cast = [
                torch.empty_like(parameter, dtype=self._dtype, requires_grad=False) for parameter in self._parameters
            ]

    @property
    def buffers(self) -> Sequence[Tensor]:
        """What it keeps between mini-batches."""
        return [*self._hidden, *self._gradients, *(self._cast if self._dtype != torch.float32 else ())]

    @torch.no_grad()
    def follow(self) -> None:
        """Takes over the parameters as they are now; needed after each step of the optimizer."""
        if self._dtype != torch.float32:
            torch._foreach_copy_(self._cast, self._parameters)

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """As `forward`, with no backward pass to come; of any number of inputs, and of any precision."""
        outputs = []
        for part in inputs.to(self._dtype).split(self._rows):
            for number in range(len(self._hidden)):
                part = self._linear(number, part)
                part = IN_PLACE[type(self._activation)][0](part) if self._is_in_place else self._activation(part)
            outputs.append(self._outputs(part))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """(B, inputs) of `dtype` -> (B, outputs) float32."""
        self._inputs, self._graphs = [inputs], []
        for number in range(len(self._hidden)):
            self._inputs.append(self._activate(self._linear(number, self._inputs[-1])))
        return self._outputs(self._inputs[-1])

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> None:
        """Takes that of the outputs of the last `forward`, (B, outputs) float32."""
        self._write(self._last, gradient, self._inputs[-1].float())
        gradient = (gradient @ self._last.weight).to(self._dtype)
        for number in reversed(range(len(self._hidden_layers))):
            gradient = self._before_activation(gradient, number)
            self._write(self._hidden_layers[number], gradient, self._inputs[number])
            if number:
                buffer = self._gradients[number - 1][: len(gradient)]
                gradient = torch.mm(gradient, self._cast[2 * number], out=buffer)
        self._inputs = []  # or the rollout would stay alive

    def _linear(self, number: int, inputs: Tensor) -> Tensor:
        """A hidden layer before its activation."""
        weight, bias = self._cast[2 * number : 2 * number + 2]
        return torch.addmm(bias, inputs, weight.t(), out=self._hidden[number][: len(inputs)])

    def _outputs(self, hidden: Tensor) -> Tensor:
        return torch.addmm(self._last.bias, hidden.float(), self._last.weight.t())

    @property
    def _is_in_place(self) -> bool:
        return type(self._activation) in IN_PLACE

    def _activate(self, hidden: Tensor) -> Tensor:
        if self._is_in_place:
            return IN_PLACE[type(self._activation)][0](hidden)
        with torch.enable_grad():
            before = hidden.detach().requires_grad_()
            after = self._activation(before)
        self._graphs.append((before, after))
        return after.detach()

    def _before_activation(self, gradient: Tensor, number: int) -> Tensor:
        if self._is_in_place:
            return IN_PLACE[type(self._activation)][1](gradient, self._inputs[number + 1])
        before, after = self._graphs.pop()
        return torch.autograd.grad(after, before, gradient)[0]

    def _write(self, layer: nn.Linear, gradient: Tensor, inputs: Tensor) -> None:
        """The gradients of the layer's parameters.

        The rows' sum is a product with ones, on a GPU above all, where torch's own takes up to 100 MB of scratch; in
        bfloat16 a CPU is faster with torch's.
        """
        weight, bias = layer.weight.grad, layer.bias.grad
        assert weight is not None
        assert bias is not None
        ones = self._ones[:, : len(gradient)]
        if gradient.dtype == weight.dtype:
            torch.mm(gradient.t(), inputs, out=weight)
            torch.mm(ones, gradient, out=bias.unsqueeze(0))
        else:
            weight.copy_(gradient.t() @ inputs)
            bias.copy_((ones.to(gradient.dtype) @ gradient).squeeze(0) if bias.is_cuda else gradient.sum(dim=0))


class Networks(NamedTuple):
    """What the rollout and the update go through."""

    actor: Perceptron
    critic: Perceptron

    @classmethod
    def of(cls, alg: PPO) -> Networks:
        """Those of `alg`, in its precision, for a mini-batch at a time."""
        rows = alg.storage.num_envs * alg.storage.num_transitions_per_env // alg.num_mini_batches
        dtype = torch.bfloat16 if alg.use_mixed_precision else torch.float32
        return cls(Perceptron(alg.actor.mlp, rows, dtype), Perceptron(alg.critic.mlp, rows, dtype))

    @property
    def buffers(self) -> list[Tensor]:
        """What they keep from one mini-batch to the next."""
        return [*self.actor.buffers, *self.critic.buffers]

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden layers."""
        return self.actor._dtype

    def follow(self) -> None:
        self.actor.follow()
        self.critic.follow()
