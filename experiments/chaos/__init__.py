"""Tests with kills, disk faults, damaged inputs and load: is anything lost, doubled, unreadable or not answered?"""
