"""The questions of the patch review that a trace can answer, with numbers (``replay review``)."""
