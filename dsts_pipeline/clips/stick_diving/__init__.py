"""The embedded data set: procedurally rendered dives in Diving48's own layout.

Class and seed -> motion plan -> posed figure -> drawn frames -> H.264 files and annotations.
"""
