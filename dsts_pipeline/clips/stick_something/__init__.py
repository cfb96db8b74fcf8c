"""The second embedded data set: procedurally rendered hands and objects in SSv2's own layout.

Class and seed -> plan -> state of hands and objects over time -> drawn frames -> VP9 files and
annotations.
"""
