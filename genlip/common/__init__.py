"""The ground floor: what all folders may import, and what imports none of them. No torch, no effects at import."""
