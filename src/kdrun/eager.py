"""Torch without its compiler, which takes more than a second to load and which nothing here needs.

Torch keeps some of its methods from being compiled by a decorator that loads the compiler at their first call, unless
it finds that the method has been seen to; and it wraps the steps of its optimizers in calls of the compiler. A
training that asks for ``compile: true`` loads it all the same.
"""

from __future__ import annotations

import inspect

import torch
import torch.utils.checkpoint


def seen_to(owner: object, *names: str) -> None:
    """Say of some methods that nothing has to be done to keep them from being compiled."""
    for name in names:
        plain = getattr(getattr(owner, name, None), "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            setattr(plain, "__dynamo_disable", plain)  # as torch calls it


seen_to(torch.optim.Optimizer, "add_param_group", "load_state_dict", "state_dict", "zero_grad")
seen_to(torch.utils.checkpoint, "checkpoint")


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """An optimizer's step without what torch wraps about it, and then no gradients."""
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
