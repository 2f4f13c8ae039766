"""Sparse dictionaries of a model's activations: trained, measured, read from other tools' files, and looked into.

trained = cm.features.train(model, texts, site="resid", layer=15)   # features of the stream behind block 15
found = cm.features.quality(model, trained.dictionary, other_texts) # FVU, loss recovered, beside random directions, PCA
dictionary = cm.features.load("their-sae", model=model)             # proved on the model's own activations, or refused
table = cm.features.describe(model, dictionary, other_texts)        # every feature: examples, tokens, neurons like it
with cm.features.clamped(model, dictionary, {12: 5.0}): ...         # a feature set, the dictionary's error kept
scores = cm.features.scores(model, dictionary, task)                # what each feature does to a task's metric
view = cm.features.as_nodes(model, dictionary, task)                # a model in whose circuits features are nodes
cm.features.save(dictionary, "folder")                              # as SAELens reads it
"""

from circuitome.features.clamping import clamped
from circuitome.features.cross_layer import CrossLayer, load_cross_layer
from circuitome.features.described import Features, describe, feature_activations
from circuitome.features.dictionary import Dictionary, random_dictionary
from circuitome.features.dictionary_quality import Fit, Quality, quality
from circuitome.features.feature_nodes import as_nodes, with_errors, without_errors
from circuitome.features.feature_scores import FeatureScores, effects, scores
from circuitome.features.feature_values import Fired, fired
from circuitome.features.formats import save
from circuitome.features.interchanged import FeatureSubspace, as_subspace
from circuitome.features.loading import load
from circuitome.features.places import SITES, Place
from circuitome.features.training import Trained, train

__all__ = [
    "SITES",
    "CrossLayer",
    "Dictionary",
    "FeatureScores",
    "FeatureSubspace",
    "Features",
    "Fired",
    "Fit",
    "Place",
    "Quality",
    "Trained",
    "as_nodes",
    "as_subspace",
    "clamped",
    "describe",
    "effects",
    "feature_activations",
    "fired",
    "load",
    "load_cross_layer",
    "quality",
    "random_dictionary",
    "save",
    "scores",
    "train",
    "with_errors",
    "without_errors",
]
