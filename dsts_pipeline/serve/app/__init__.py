"""A page on this machine: a video in, its answer, its route and its neighbours out.

It listens on the loopback address, takes one file at a time, and asks nothing of the network.
FastAPI and uvicorn are an extra: nothing outside of this folder imports them.
"""
