"""Per-example gradients of any module, by layers or by autograd, and a round's context. As private as the records."""
