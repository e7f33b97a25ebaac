"""From a piece's private records to integer sums: the Lipschitz clip, the grid, the counters. Nothing here logs or stores."""
