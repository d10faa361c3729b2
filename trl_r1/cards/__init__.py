"""Model cards with valid Hub metadata."""

from __future__ import annotations

from trl_r1.cards.card import CardFacts, model_card, write_card

__all__ = ["CardFacts", "model_card", "write_card"]
