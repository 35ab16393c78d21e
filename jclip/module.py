"""Jittor's Module, with the methods of PyTorch's modules that code written for OpenAI's `clip` calls."""

from __future__ import annotations

from jittor import nn


class Module(nn.Module):
    """A module whose modes leave gradients alone, as PyTorch's do.

    Jittor's eval() stops the gradients of all parameters, so that training a model that was only loaded would change
    nothing, and say nothing.
    """

    def train(self, mode: bool = True):
        """Set training mode, or evaluation mode with False, and return the module; CLIP computes the same in both."""
        for module in self.modules():
            module.is_train = mode
        return self

    def eval(self):
        """Set evaluation mode and return the module."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True):
        """Make all parameters take part in gradients, or freeze them with False, and return the module.

        Jittor's own also keeps gradients from passing through the module to its input, such as a learned prompt.
        """
        for parameter in self.parameters():
            (parameter.start_grad if requires_grad else parameter.stop_grad)()
        return self


class Sequential(Module, nn.Sequential):
    """Modules one after the other."""
