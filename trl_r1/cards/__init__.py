"""Model and data-set cards with valid Hub metadata."""

from __future__ import annotations

from trl_r1.cards.card import CardFacts, model_card, write_card
from trl_r1.cards.dataset import DatasetFacts, dataset_card, write_dataset_card

__all__ = ["CardFacts", "DatasetFacts", "dataset_card", "model_card", "write_card", "write_dataset_card"]
