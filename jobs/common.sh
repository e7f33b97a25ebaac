# The job scripts in this folder source this file, from the folder that the job was submitted in. It is for Bash.
#
# The settings come from the environment of the submission (the last column has the defaults):
#   CONFIG   the task                                            configs/digits.toml
#   OUT      the folder of the run                               runs/NAME of the config
#   PYTHON   a Python that has distqexp                          .venv/bin/python
#   TASKS    for array jobs: a file with a line for each task, CONFIG OUT and further options of distqexp.fit
#   RETRIES  how often in a row a run that lost a rank is queued again without a new release         3
#   SCRATCH  a folder that is there on every node, for temporary files                               TMPDIR or /tmp
#   PROGRAM  what Python runs                                    -m distqexp.fit
#   DISTQEXP_DATA, DISTQEXP_LEDGER                               as everywhere; a ledger needs a file system with file locks
#
# A file OUT.stop keeps a job from being queued again.
# shellcheck shell=bash disable=SC2034

export PYTHON=${PYTHON:-.venv/bin/python}
export TMPDIR=${SCRATCH:-${TMPDIR:-/tmp}}

# An element of an array takes its line of the list. TASK_INDEX is that of an element that PBS got once more as a job of its own.
export TASK_INDEX=${TASK_INDEX:-${SLURM_ARRAY_TASK_ID:-${PBS_ARRAY_INDEX:-${LSB_JOBINDEX:-0}}}}
options=()
if [[ -n ${TASKS:-} ]]; then
    read -r CONFIG OUT line <<<"$(sed -n "${TASK_INDEX}p" "$TASKS")"
    if [[ -z $OUT ]]; then
        echo "distqexp: $TASKS: line $TASK_INDEX has no CONFIG OUT [OPTION...]; expected one for each index of the array" >&2
        exit 2
    fi
    read -ra options <<<"$line"
fi
export CONFIG=${CONFIG:-configs/digits.toml}
export OUT=${OUT:-runs/$(basename "$CONFIG" .toml)}

# The plan's thread count goes to the libraries that read it when they are loaded. The ledger is named in full, so that
# every job of the run has the same one, whatever its node's environment says.
facts=$("$PYTHON" -c '
import sys
from pathlib import Path
from distqexp.config import load_config
from distqexp.errors import DistqexpError
from distqexp.privacy.ledger.files import default_path
try:
    overrides = [value for option, value in zip(sys.argv[2:], sys.argv[3:]) if option == "--set"]
    print(load_config(Path(sys.argv[1]), overrides).engine.threads)
    print(default_path())
except DistqexpError as error:
    print(f"distqexp: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
' "$CONFIG" "${options[@]}")
threads=${facts%%$'\n'*}
export DISTQEXP_LEDGER=${facts#*$'\n'}
export OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads

# These are what a second submission has to pass on, by name, and what Open MPI has to pass on to other nodes.
settings=CONFIG,OUT,PYTHON,TASK_INDEX
exports=(-x OMP_NUM_THREADS -x MKL_NUM_THREADS -x OPENBLAS_NUM_THREADS)
for name in TASKS RETRIES SCRATCH PROGRAM STOP_AFTER IMAGE MPI_HOME; do
    if [[ -v $name ]]; then
        settings+=,$name
    fi
done
for name in DISTQEXP_DATA DISTQEXP_LEDGER DISTQEXP_ALLOW_FACTORIES; do
    if [[ -v $name ]]; then
        settings+=,$name
        exports+=(-x "$name")
    fi
done

# --resume begins a new run in a new folder, and goes on with the one that is there.
read -ra program <<<"${PROGRAM:--m distqexp.fit}"
fit=("$PYTHON" "${program[@]}" "$CONFIG" --out "$OUT" --resume --json "${options[@]}")

# A temporary folder of the job's own, away from what killed launchers left behind (docs/supercomputer.md).
own_scratch() {
    TMPDIR=$(mktemp -d "$TMPDIR/distqexp-XXXXXX")
    trap 'rm -rf "$TMPDIR"' EXIT
}

# Run a command, pass SIGUSR1 and SIGTERM on to it as SIGUSR1, and return its exit code: distqexp writes a checkpoint and
# exits with code 75. `warned` says whether SIGUSR1 came, which is what announces the wall time.
warned=''
run_until_stopped() {
    local child code interrupted
    "$@" &
    child=$!
    trap 'interrupted=1 warned=1; kill -USR1 "$child" 2>/dev/null' USR1
    trap 'interrupted=1; kill -USR1 "$child" 2>/dev/null' TERM
    while :; do
        interrupted='' code=0
        wait "$child" || code=$?
        # A signal ends `wait` early, but not the command.
        [[ -n $interrupted ]] || break
    done
    trap - USR1 TERM
    return "$code"
}

# Whether a run that ended with this exit code is to be queued again: it was stopped on request (75), or it lost a rank, a
# node or its launcher (5, and what launchers return then). No repeat mends the other codes of distqexp.
again() {
    local code=$1 failures=0 before=0 releases
    [[ ! -e $OUT.stop ]] || return 1
    releases=$(find "$OUT" -maxdepth 1 -name 'release-*.h5' 2>/dev/null | wc -l)
    case $code in
        0 | 75) rm -f "$OUT.failures" ;;
    esac
    case $code in
        75) return 0 ;;
        0 | 2 | 3 | 4 | 6 | 70 | 130) return 1 ;;
    esac
    if [[ -e $OUT.failures ]]; then
        read -r failures before <"$OUT.failures"
    fi
    if ((releases > before)); then
        failures=0
    fi
    if ((failures >= ${RETRIES:-3})); then
        rm -f "$OUT.failures"
        echo "distqexp: failed $((failures + 1)) times in a row without a new release: not queued again" >&2
        return 1
    fi
    mkdir -p "$(dirname "$OUT")"
    echo "$((failures + 1)) $releases" >"$OUT.failures"
}

# Say that the scheduler refused.
refused() {
    echo "distqexp: the scheduler did not queue the job again; submit the same script once more" >&2
}
