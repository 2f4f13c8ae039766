"""A perceptron trained to say whether two pairs of things are the same alike, between heads that were set by hand."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import circuitome as cm
from circuitome.models.known import KnownConfig, KnownForCausalLM, tokenizer_of
from circuitome.models.model import Model

NEURONS, HIDDEN, BATCH, STEPS = 32, 16, 1024, 3000
"""Neurons of an MLP, numbers that one passes to the next, prompts of a step, steps."""
SLICES = (slice(0, HIDDEN), slice(HIDDEN, 2 * HIDDEN), slice(2 * HIDDEN, 2 * HIDDEN + 2))
"""Where each MLP writes: coordinates that are 0 at the last token, the next MLP reads them alone."""
DECAY = 0.1
UNSEEN = range(20, 40)
"""Entities that no prompt of a search holds; in training every vector is new."""


def trained(seed: int = 0) -> Model:
    """The network: heads of known-equality gather the four vectors, its three MLPs are learned."""
    hand: Any = cm.load("known-equality").hf
    fields = {name: getattr(hand.config, name) for name in KnownConfig.__annotations__}
    config: Any = KnownConfig(**{**fields, "intermediate_size": NEURONS})
    size = hand.layers[0].self_attn.out_proj.weight.any(1).nonzero()[:, 0]  # where heads write the four vectors
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = [len(size), HIDDEN, HIDDEN, 2]
        mlps = [(nn.Linear(i, NEURONS), nn.Linear(NEURONS, o)) for i, o in pairwise(sizes)]
        learn(mlps)
        hf: Any = KnownForCausalLM(config)
    hf.load_state_dict({k: v for k, v in hand.state_dict().items() if "fc" not in k}, strict=False)
    reads = (size, *(torch.arange(config.hidden_size)[where] for where in SLICES[:-1]))
    with torch.no_grad():
        for layer, (enter, leave), read, write in zip(hf.layers, mlps, reads, SLICES, strict=True):
            for parameter in (layer.fc1.weight, layer.fc2.weight, layer.fc2.bias, hf.lm_head.weight):
                parameter.zero_()
            layer.fc1.weight[:, read], layer.fc1.bias[:] = enter.weight, enter.bias
            layer.fc2.weight[write], layer.fc2.bias[write] = leave.weight, leave.bias
        answers = [config.vocabulary.index(word) for word in ("different", "same")]
        hf.lm_head.weight[answers, SLICES[-1]] = torch.eye(2)
    return Model(hf.eval(), tokenizer_of(config), "trained-equality")


def learn(mlps: list[tuple[nn.Linear, nn.Linear]]) -> None:
    """Train the MLPs, one behind the other, on vectors that are new in each step."""
    optimizer = torch.optim.AdamW(
        [parameter for pair in mlps for part in pair for parameter in part.parameters()], 5e-3, weight_decay=DECAY
    )
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, STEPS)
    for _ in range(STEPS):
        things = torch.randn(BATCH, 4, 4)
        left, right = (torch.rand(2, BATCH) < 0.5).unbind()
        things[left, 1], things[right, 3] = things[left, 0], things[right, 2]
        x = things.flatten(1)
        for enter, leave in mlps:
            x = leave(enter(x).relu())
        loss = nn.functional.cross_entropy(x, (left == right).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()


def prompts(n: int, seed: int, entities: range) -> cm.Task:
    """Prompts of known-equality that hold some entities alone."""
    every, known = cm.ground_truth.task("known-equality", 40 * n, seed), {1 + entity for entity in entities}
    pairs = [pair for pair in every.pairs if set(pair.clean[1:5]) <= known]
    return replace(every, pairs=tuple(pairs[:n]))
