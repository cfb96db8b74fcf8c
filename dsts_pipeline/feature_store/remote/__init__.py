"""Stores behind URLs: shards are fetched whole into a local cache of bounded size."""
