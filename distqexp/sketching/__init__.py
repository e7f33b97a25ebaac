"""Private: per-example gradients, the Lipschitz clip, exact integer sums. Nothing here logs or stores."""
