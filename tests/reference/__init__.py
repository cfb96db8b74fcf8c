"""The paper's equations done literally, slowly, in float64. No code is shared with the package."""
