"""Is a store sound? Files against digests, what the maps hold, drift, repair, housekeeping."""
