"""NVIDIA FLARE carries plans, releases and sums: a controller at the coordinator, an executor at each site.

``coordinator.py`` and ``site.py`` hold all that is distqexp's own, and know nothing of FLARE; ``controller.py`` and ``executor.py``
are FLARE's classes around them. ``job.py`` makes the job. Nothing here is imported unless it is asked for.
"""
