"""Per-example gradients of any module, by layers or by autograd, and what a round's work is done with. As private as its records."""
