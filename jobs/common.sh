# The job scripts in this folder source this file, from the folder that the job was submitted in. It is for Bash.
#
# The settings come from the environment of the submission (the last column has the defaults):
#   CONFIG   the task                            configs/digits.toml
#   OUT      the folder of the run               runs/NAME of the config
#   PYTHON   a Python that has distqexp          .venv/bin/python
#   DISTQEXP_DATA, DISTQEXP_LEDGER               as everywhere; a ledger needs a file system with file locks

export CONFIG=${CONFIG:-configs/digits.toml}
export OUT=${OUT:-runs/$(basename "$CONFIG" .toml)}
export PYTHON=${PYTHON:-.venv/bin/python}

# The plan's thread count goes to the libraries that read it when they are loaded.
threads=$("$PYTHON" -c '
import sys
from pathlib import Path
from distqexp.config import load_config
from distqexp.errors import DistqexpError
try:
    print(load_config(Path(sys.argv[1])).engine.threads)
except DistqexpError as error:
    print(f"distqexp: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
' "$CONFIG")
export OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads

# These are what a second submission has to pass on, by name, and what Open MPI has to pass on to other nodes.
settings=CONFIG,OUT,PYTHON
exports=(-x OMP_NUM_THREADS -x MKL_NUM_THREADS -x OPENBLAS_NUM_THREADS)
for name in DISTQEXP_DATA DISTQEXP_LEDGER DISTQEXP_ALLOW_FACTORIES; do
    if [[ -v $name ]]; then
        settings+=,$name
        exports+=(-x "$name")
    fi
done

# --resume begins a new run in a new folder, and goes on with the one that is there.
fit=("$PYTHON" -m distqexp.fit "$CONFIG" --out "$OUT" --resume --json)

# Run a command, pass SIGUSR1 and SIGTERM on to it as SIGUSR1, and return its exit code: distqexp writes a checkpoint and
# exits with code 75.
run_until_stopped() {
    local child code interrupted
    "$@" &
    child=$!
    trap 'interrupted=1; kill -USR1 "$child" 2>/dev/null' USR1 TERM
    while :; do
        interrupted= code=0
        wait "$child" || code=$?
        # A signal ends `wait` early, but not the command.
        [[ -n $interrupted ]] || break
    done
    trap - USR1 TERM
    return "$code"
}
