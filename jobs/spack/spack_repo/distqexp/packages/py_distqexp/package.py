"""distqexp from a checkout:

spack repo add jobs/spack/spack_repo/distqexp
spack develop --path "$PWD" py-distqexp@0.1.0
spack install --add py-distqexp@0.1.0 +mpi ^openmpi
"""

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyDistqexp(PythonPackage):
    """Differentially private fine-tuning by an exponential mechanism on a distributed local quadratic."""

    license("Apache-2.0")

    # No release is published: the source is the checkout that `spack develop` names.
    version("0.1.0")

    variant("mpi", default=True, description="Ranks over MPI")
    variant("dask", default=False, description="Workers of a Dask cluster")

    depends_on("python@3.11:3.13", type=("build", "run"))
    depends_on("py-setuptools@77:82", type="build")

    with default_args(type=("build", "run")):
        depends_on("py-torch@2.8:2.13")
        depends_on("py-numpy@2.0:2")
        depends_on("py-scipy@1.13:1")
        depends_on("py-h5py@3.11:3")
        depends_on("py-mpmath@1.3:1")
        depends_on("py-cryptography@43:50")
        depends_on("py-safetensors@0.4.5:0")
        depends_on("py-typer@0.15:0")
        depends_on("py-rich@13.9:15")
        depends_on("py-pyarrow@17:26")
        depends_on("py-scikit-learn@1.5:1")
        depends_on("py-threadpoolctl@3.5:3")
        depends_on("py-dp-accounting@0.6:0.7")
        depends_on("py-jinja2@3.1.5:3")
        depends_on("py-mpi4py@4.1:4", when="+mpi")
        depends_on("py-dask@2025.1:2026", when="+dask")
        depends_on("py-distributed", when="+dask")

    import_modules = ["distqexp", "distqexp.fit"]
