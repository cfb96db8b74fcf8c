"""Maps in other forms: one HDF5 file, and features that were made elsewhere."""
