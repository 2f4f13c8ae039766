"""Sparse dictionaries."""

from circuitome.features.dictionary import Dictionary, random_dictionary
from circuitome.features.places import SITES, Place
from circuitome.features.training import Trained, train

__all__ = ["SITES", "Dictionary", "Place", "Trained", "random_dictionary", "train"]
