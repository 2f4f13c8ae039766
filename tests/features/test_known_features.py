"""Dictionaries set by hand: features that are an MLP's neurons, and circuits of features that are known beforehand."""

import pytest
import torch
from families import random_task, tiny
from planted_neurons import BIGRAM, LENGTH, PLANTED, planted_model

import circuitome as cm
from circuitome.features.dictionary import Dictionary
from circuitome.features.places import Place
from circuitome.tasks.task import Pair, Task

ANSWER, OTHER, FEATURES = 20, 19, 12


def of_neurons(model, layer):
    """A transcoder whose features are the neurons of a ReLU MLP: nothing is left but the bias."""
    first, last = model.blocks[layer].mlp_readers[0], model.blocks[layer].mlp_writer
    place, weights = Place("transcoder", layer), [t.detach().clone() for t in (first.weight.T, first.bias)]
    return Dictionary(
        place=place,
        W_enc=weights[0],
        b_enc=weights[1],
        W_dec=last.weight.detach().T.clone(),
        b_dec=last.bias.detach().clone(),
    )


def test_features_that_are_neurons_have_the_neurons_scores_and_circuits():
    model, task, chosen = tiny("opt"), random_task(3), (3, 8, 21, 39)
    features = cm.features.as_nodes(model, of_neurons(model, 1), task, features=chosen)
    neurons = model.with_neurons([f"m1.n{i}" for i in chosen])
    for steps in (1, 3):
        scores = [cm.neurons.graph_scores(view, task, steps=steps).values for view in (features, neurons)]
        torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-4)
    some = torch.rand(neurons.graph.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    logits = [
        cm.run_circuit(view, task, cm.Circuit(view.graph, some & view.graph.mask)) for view in (features, neurons)
    ]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    assert [d.clean for d in cm.neurons.describe(features, ["m1.f8"], task)] == pytest.approx(
        [d.clean for d in cm.neurons.describe(neurons, ["m1.n8"], task)], abs=1e-5
    )


def known(site):
    """The planted model, whose bigram neuron alone raises one token; a dictionary that knows it; and its circuit."""
    model = planted_model(gated=False)
    layer, bigram = model.hf.layers[0], PLANTED.index("bigram")
    with torch.no_grad():
        layer.fc2.weight.zero_()
        layer.fc2.weight[ANSWER, bigram] = 4.0
    generator = torch.Generator().manual_seed(0)
    W_enc, W_dec = (0.1 * torch.randn(shape, generator=generator) for shape in ((136, FEATURES), (FEATURES, 136)))
    b_enc, feature = torch.full((FEATURES,), -9.0), 7
    W_dec[feature] = 0.0
    if site == "transcoder":
        W_enc[:, feature], b_enc[feature] = layer.fc1.weight[bigram].detach(), layer.fc1.bias[bigram].detach()
        W_dec[feature, ANSWER] = 4.0
    else:
        W_enc[:, feature], b_enc[feature] = 0.0, 1.0  # active on the whole path from corrupted to clean
        W_enc[ANSWER, feature] = W_dec[feature, ANSWER] = 1.0
    dictionary = Dictionary(place=Place(site, 0), W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=torch.zeros(136))
    truth = ["embed->a0.kv0.v"]
    if site == "resid":
        return model, dictionary, [*truth, "a0.h0->m0.in", "m0->x1.f7.in", "x1.f7->logits"]
    return model, dictionary, [*truth, "a0.h0->m0.f7.in", "m0.f7->logits"]


def bigrams():
    """Prompts that end on the bigram, and the same with another token in front of its last."""
    pairs = []
    for i in range(40):
        start = (12 + i % 7, 12 + i // 7, 15)
        pairs.append(Pair((*start, *BIGRAM), (*start, 21, BIGRAM[1]), (ANSWER,), (OTHER,)))
    return Task("bigram", tuple(pairs))


@pytest.mark.parametrize("site", ["transcoder", "mlp", "resid"])
def test_the_circuit_of_a_hand_set_model_and_dictionary_is_found(site):
    model, dictionary, truth = known(site)
    assert dictionary.W_enc.shape[0] == model.d_model == 3 * 24 + LENGTH
    task = bigrams()
    view = cm.features.as_nodes(model, dictionary, task, features=[1, 4, 7])
    scores = cm.neurons.graph_scores(view, task)
    assert set(scores.top(len(truth))) == set(truth)
    assert float(scores.values[~cm.Circuit.of(view.graph, truth).mask].abs().max()) < 1e-5
    found = cm.smallest(view, task, steps=40)
    assert set(found.circuit) == set(truth)
    share = cm.faithfulness(view, cm.features.without_errors(found.circuit), task).share
    assert share.value == pytest.approx(1.0, abs=1e-5)
    assert [i for i, score in cm.features.scores(model, dictionary, task).top(1)] == [7]
