"""Tests with kills, disk faults, damaged inputs and load, which count what is lost, doubled or unreadable."""
