"""Attention sheets (Fig. 7) and ranked lists."""
