"""The terms of an objective, one a file: what each compares, with its own targets, weight and measurements."""

from pretrain.terms.base import Masked, Seen, Term
from pretrain.terms.class_tokens import ClassTokens
from pretrain.terms.gram import Gram
from pretrain.terms.patches import MaskedPatches
from pretrain.terms.spread import Spread

__all__ = ["ClassTokens", "Gram", "Masked", "MaskedPatches", "Seen", "Spread", "Term"]
