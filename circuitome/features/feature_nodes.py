"""Features of a dictionary as nodes of circuits: which ones, and what circuits do with and without the errors."""

import hashlib
from collections.abc import Sequence

from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.features.clamping import check_features
from circuitome.features.dictionary import Dictionary
from circuitome.features.dictionary_quality import check_width
from circuitome.features.feature_scores import scores
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Model

NODES = 50
"""Features that become nodes where nobody says how many."""
NODE_SITES = ("resid", "mlp", "transcoder", "stream-transcoder")
"""Sites whose features can be nodes."""


@method
@on_neurons
def as_nodes(setting: Setting, dictionary: Dictionary, *, features: int | Sequence[int] = NODES) -> Model:
    """The model with features of a dictionary as nodes, in the place of the MLP or the stream that they describe.

    Of an MLP (or a transcoder) the nodes are m7.f12 with the input m7.f12.in, and m7 for what they leave: the error,
    biases, a transcoder's linear part and the features that are no nodes. Of the stream behind block 7 they are x8.f12,
    and x8 for what they leave; no edge passes them by. With all of them a circuit is the model itself, to rounding.
    `features` are those to take, or how many: then the strongest by |score| of `cm.features.scores(steps=1)`. A model
    that has neurons as nodes, or features of another dictionary, keeps them. A feature that reads an MLP's output runs
    all of that MLP for itself in a circuit; one of the stream, or of a transcoder, is one row of the encoder, and under
    TopK all of the encoder where it is above 0. Source: Marks et al. 2024, arXiv:2403.19647, where all features are
    nodes and the error is a constant; here the error reads the stream as the features do.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 1), model.d_model, 40, k=4)
    >>> view = cm.features.as_nodes(model, dictionary, task, features=[3, 7])
    >>> [name for name in view.graph.writers if name.startswith("x")]
    ['x2', 'x2.f3', 'x2.f7']

    Raises `InputError` for a dictionary that does not fit, of heads' outputs or with token-by-token scaling, for fewer
    than one feature, for an MLP whose neurons are nodes, and for an ablation that is neither corrupted nor zero;
    `UnknownNameError` for a feature that there is not.
    """
    model, place = setting.model, dictionary.place
    check_width(setting, dictionary)
    if place.site not in NODE_SITES:
        raise InputError(f"Features of {place.words} cannot be nodes; those of {', '.join(NODE_SITES)} can.")
    if dictionary.scaling != "none":
        raise InputError(
            f"A feature of a dictionary with scaling {dictionary.scaling!r} has no one direction to write."
        )
    if isinstance(features, int):
        if features < 1:
            raise InputError(f"At least one feature has to be a node, got {features}.")
        found = scores(setting.but(model=model.with_neurons([])), dictionary, steps=1)
        features = [i for i, score in found.top(min(features, len(dictionary))) if score]
    if not features:
        raise InputError("At least one feature has to be a node, and none changes on these prompts.")
    check_features(dictionary, list(features))
    return model.with_described(dictionary.to(model.device), features, fingerprint(dictionary))


def fingerprint(dictionary: Dictionary) -> str:
    """A short hash of a dictionary's weights and of what decides its activations."""
    digest = hashlib.sha256(f"{dictionary.place} {dictionary.k} {dictionary.scaling}".encode())
    for name, value in sorted(dictionary.tensors().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def errors_of(circuit: Circuit) -> list[int]:
    """Rows of the nodes that stand for what features leave, in the graph of a circuit."""
    graph = circuit.graph
    stages = (stage for by_block in graph.stages for stage in by_block if stage.described)
    return [stage.rows.start for stage in stages]


def without_errors(circuit: Circuit) -> Circuit:
    """The circuit without the edges of what features leave, and without what then leads nowhere.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 1), model.d_model, 40, k=4)
    >>> graph = cm.features.as_nodes(model, dictionary, task, features=[3, 7]).graph
    >>> list(cm.features.without_errors(cm.Circuit.of(graph, ["embed->x2.in", "x2->logits", "embed->x2.f3.in"])))
    []
    """
    mask = circuit.mask.clone()
    for row in errors_of(circuit):
        mask[row] = False
        mask[:, list(circuit.graph.inputs_of[row])] = False
    return Circuit(circuit.graph, mask).without_dangling()


def with_errors(circuit: Circuit) -> Circuit:
    """The circuit with every edge between its nodes and what features leave.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 1), model.d_model, 40, k=4)
    >>> graph = cm.features.as_nodes(model, dictionary, task, features=[3, 7]).graph
    >>> circuit = cm.Circuit.of(graph, ["embed->x2.f3.in", "x2.f3->logits"])
    >>> list(cm.features.with_errors(circuit) - circuit)
    ['embed->x2.in', 'x2->logits']
    """
    graph, mask = circuit.graph, circuit.mask.clone()
    writes, reads = circuit.mask.any(1), circuit.mask.any(0)
    for row in errors_of(circuit):
        writes[row] = reads[list(graph.inputs_of[row])] = True
    for row in errors_of(circuit):
        columns = list(graph.inputs_of[row])
        mask[row] |= graph.mask[row] & reads
        mask[:, columns] |= graph.mask[:, columns] & writes[:, None]
    return Circuit(graph, mask)
