"""A perceptron's forward and backward pass, written out, in buffers that are used again.

Autograd would keep the input of an ELU beside its output and allocate both anew in every mini-batch. Here an
activation whose slope follows from its output works in place; the others go through autograd one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    """Linear layers with one activation between them. Gradients are added to the parameters' own `.grad`.

    With bfloat16 the hidden layers and the gradients of their outputs have that precision, as in torch's autocast; the
    last layer, the parameters and their gradients stay in float32.
    """

    def __init__(self, layers: nn.Sequential, rows: int, dtype: torch.dtype) -> None:
        """`rows`: at most so many inputs at a time. `dtype`: of the hidden layers."""
        *self._hidden_layers, self._last = [layer for layer in layers if isinstance(layer, nn.Linear)]
        self._activation = layers[1]
        self._parameters = [parameter for layer in self._hidden_layers for parameter in (layer.weight, layer.bias)]
        self._cast = self._parameters  # the hidden layers' parameters, as they are multiplied
        if dtype != torch.float32:
            self._cast = [
                torch.empty_like(parameter, dtype=dtype, requires_grad=False) for parameter in self._parameters
            ]
        new = self._last.weight.new_empty
        shapes = [(rows, layer.out_features) for layer in self._hidden_layers]
        self._hidden = [new(shape, dtype=dtype, requires_grad=False) for shape in shapes]
        self._gradients = [new(shape, dtype=dtype, requires_grad=False) for shape in shapes[:-1]]
        self._dtype = dtype
        self._inputs: list[Tensor] = []  # of every layer, the last forward pass's
        self._graphs: list[tuple[Tensor, Tensor]] = []  # input and output of each activation that is not in place

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
    def forward(self, inputs: Tensor) -> Tensor:
        """(B, inputs) of `dtype` -> (B, outputs) float32."""
        self._inputs, self._graphs = [inputs], []
        for weight, bias, buffer in zip(self._cast[::2], self._cast[1::2], self._hidden, strict=True):
            hidden = torch.addmm(bias, self._inputs[-1], weight.t(), out=buffer[: len(inputs)])
            self._inputs.append(self._activate(hidden))
        return torch.addmm(self._last.bias, self._inputs[-1].float(), self._last.weight.t())

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> None:
        """Takes that of the outputs of the last `forward`, (B, outputs) float32."""
        _add(self._last, gradient, self._inputs[-1].float())
        gradient = (gradient @ self._last.weight).to(self._dtype)
        for number in reversed(range(len(self._hidden_layers))):
            gradient = self._before_activation(gradient, number)
            _add(self._hidden_layers[number], gradient, self._inputs[number])
            if number:
                buffer = self._gradients[number - 1][: len(gradient)]
                gradient = torch.mm(gradient, self._cast[2 * number], out=buffer)
        self._inputs = []  # or the rollout would stay alive

    def _activate(self, hidden: Tensor) -> Tensor:
        if type(self._activation) in IN_PLACE:
            return IN_PLACE[type(self._activation)][0](hidden)
        with torch.enable_grad():
            before = hidden.detach().requires_grad_()
            after = self._activation(before)
        self._graphs.append((before, after))
        return after.detach()

    def _before_activation(self, gradient: Tensor, number: int) -> Tensor:
        if type(self._activation) in IN_PLACE:
            return IN_PLACE[type(self._activation)][1](gradient, self._inputs[number + 1])
        before, after = self._graphs.pop()
        return torch.autograd.grad(after, before, gradient)[0]


def _add(layer: nn.Linear, gradient: Tensor, inputs: Tensor) -> None:
    """Adds to the gradients of the layer's parameters."""
    weight, bias = layer.weight.grad, layer.bias.grad
    assert weight is not None
    assert bias is not None
    if gradient.dtype == weight.dtype:
        weight.addmm_(gradient.t(), inputs)
    else:
        weight.add_(gradient.t() @ inputs)
    bias.add_(gradient.sum(dim=0))
