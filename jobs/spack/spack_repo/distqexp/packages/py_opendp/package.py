from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyOpendp(PythonPackage):
    """Python bindings for the OpenDP Library, a Rust library of differentially private mechanisms."""

    homepage = "https://github.com/opendp/opendp"
    pypi = "opendp/opendp-0.16.0.tar.gz"

    license("MIT")

    version("0.16.0", sha256="eff7bbb7e896a8461d06dd8fc28c3c67c798267c4487b284f4917cb3fbe0caaf")

    depends_on("python@3.10:", type=("build", "run"))
    depends_on("py-setuptools@42:", type="build")
    depends_on("py-setuptools-rust", type="build")
    depends_on("py-wheel", type="build")
    # cargo gets the crates when this is built.
    depends_on("rust", type="build")
    depends_on("py-deprecated", type=("build", "run"))
