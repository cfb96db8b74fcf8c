"""Backbone and head trained together on videos.

Clips are decoded in every epoch, frames go through a backbone whose parameters may train, its map
goes to the head. Under UDL the backbone is among the downstream parameters (paper 3.3).
"""
