"""Kills, faults, damaged inputs and load: whether anything is lost, doubled, unreadable or left without an answer."""
