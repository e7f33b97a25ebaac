from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyDpAccounting(PythonPackage):
    """Tools for tracking differential privacy budgets."""

    homepage = "https://github.com/google/differential-privacy"
    pypi = "dp-accounting/dp_accounting-0.6.0.tar.gz"

    license("Apache-2.0")

    version("0.6.0", sha256="87820afdec3baa83c57abaad91163628de6abf74f292e56330b5a081d57c69e1")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("py-setuptools", type="build")

    with default_args(type=("build", "run")):
        depends_on("py-absl-py@1:2")
        depends_on("py-attrs@22:23")
        depends_on("py-dm-tree@0.1.8:0.1")
        depends_on("py-mpmath@1.2:1")
        depends_on("py-numpy@1.21:2")
        depends_on("py-scipy@1.7:1")
