"""How sequences of unequal length go through a model without paying for padding."""
