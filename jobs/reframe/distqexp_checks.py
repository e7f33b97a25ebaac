"""ReFrame's checks of an installed distqexp: is the machine fit, and does the digits task come out on any number of ranks.

    reframe -C SETTINGS.py -c jobs/reframe/distqexp_checks.py -S python=/path/to/python -r

``SETTINGS.py`` is the site's own: its partitions say how ranks are launched.
"""

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import parameter, performance_function, run_before, sanity_function, variable


class DistqexpBase(rfm.RunOnlyRegressionTest):
    """What the checks have in common. The ledger is the check's own: real budgets are not touched."""

    python = variable(str, value="python3")
    ranks = parameter([1, 2, 64])
    valid_systems = ["*"]
    valid_prog_environs = ["*"]

    @run_before("run")
    def prepare(self):
        self.num_tasks = self.ranks
        self.executable = self.python
        self.env_vars = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "DISTQEXP_LEDGER": "$PWD/books/ledger.sqlite",
        }
        self.prerun_cmds = ["mkdir -p books"]


@rfm.simple_test
class DistqexpDoctor(DistqexpBase):
    """Ranks, launcher, folders and locks have no fault."""

    executable_opts = ["-c", "'from distqexp.cli import main; main()'", "doctor"]

    @sanity_function
    def has_no_fault(self):
        return sn.assert_eq(self.job.exitcode, 0)


@rfm.simple_test
class DistqexpDigits(DistqexpBase):
    """The embedded task ends within its budget, and better than it began."""

    executable_opts = ["-m", "distqexp.fit", "--out", "run", "--json"]
    time_limit = "20m"

    @sanity_function
    def is_private_and_useful(self):
        before = sn.extractsingle(r'"before": \{[^}]*"accuracy": ([0-9.]+)', self.stdout, 1, float)
        after = sn.extractsingle(r'"after": \{[^}]*"accuracy": ([0-9.]+)', self.stdout, 1, float)
        epsilon = sn.extractsingle(r'"epsilon": ([0-9.]+)', self.stdout, 1, float)
        return sn.all([sn.assert_le(epsilon, 1.0), sn.assert_gt(after, before)])

    @performance_function("s")
    def sketch_seconds(self):
        return sn.extractsingle(r'"sketch": ([0-9.]+)', self.stdout, 1, float)
